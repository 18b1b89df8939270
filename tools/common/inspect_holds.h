#pragma once
// What a model, adapter, checkpoint, tokenizer or data file holds.
#include <filesystem>

#include "model/io/json.h"
#include "tools/common/options.h"

namespace qlora::tools {

// A summary as one object: "kind" first, and with `tensors` a list of {name, dtype, shape}. Category::input
// for what is none of these, and for files that are broken.
Json holds_of(const Options& options, const std::filesystem::path& path, bool tensors);

// The same for people.
void print_holds(const Json& holds);

}  // namespace qlora::tools
