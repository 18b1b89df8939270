#include "model/families/families.h"

#include <array>

#include "memory/error.h"

namespace qlora {
namespace {

constexpr std::array<const Family*, 2> kFamilies = {&kLlamaFamily, &kQwen3Family};

std::string supported(const char* Family::*name) {
  std::string list;
  for (const Family* f : kFamilies)
    if (f->*name != nullptr) list += (list.empty() ? "" : ", ") + std::string(f->*name);
  return list;
}

}  // namespace

const Family& family_of_config(const Json& config, const std::string& where) {
  const auto type = json_string(config, where, "model_type");
  if (!type)
    fail(Category::input, where, ": model_type is absent; this is no config.json of a language model");
  for (const Family* f : kFamilies)
    if (*type == f->model_type) return *f;
  fail(Category::input, where, ": models of the family ", shown_text(*type),
       " are not supported; supported are ", supported(&Family::model_type));
}

const Family& family_of_gguf(const GgufFile& file) {
  const auto architecture = file.string("general.architecture");
  if (!architecture)
    fail(Category::input, file.path(),
         ": general.architecture is absent; this is no GGUF of a language model");
  for (const Family* f : kFamilies)
    if (f->gguf_architecture != nullptr && *architecture == f->gguf_architecture) return *f;
  fail(Category::input, file.path(), ": models of the architecture ", shown_text(*architecture),
       " are not supported; supported are ", supported(&Family::gguf_architecture));
}

}  // namespace qlora
