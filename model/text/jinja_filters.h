#pragma once
#include "model/text/jinja_interpreter.h"

namespace qlora::jinja {

// An argument that is a switch; absent means off.
bool flag(const Args& args, size_t position, const char* name);
// attribute="a.b" walks; an integer indexes.
Value by_path(Interpreter& in, Value v, const Value& path);
// What sorting and telling apart go by: strings without case, unless wanted.
Value sort_key(Interpreter& in, const Value& v, const Value* attribute, bool case_sensitive);

// The filters of jinja_sequence_filters.cc.
namespace filters {
Value unique(Interpreter& in, const Value& v, Args& args);
Value dictsort(Interpreter& in, const Value& v, Args& args);
Value sort(Interpreter& in, const Value& v, Args& args);
Value sum(Interpreter& in, const Value& v, Args& args);
Value max(Interpreter& in, const Value& v, Args& args);
Value min(Interpreter& in, const Value& v, Args& args);
}  // namespace filters

}  // namespace qlora::jinja
