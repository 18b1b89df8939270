#include "model/io/gguf_tokenizer.h"

#include "memory/error.h"

namespace qlora {
namespace {

constexpr const char* kPrefix = "tokenizer.ggml.";

std::optional<int64_t> token_id(const GgufFile& file, const char* key, size_t tokens) {
  const std::string name = cat(kPrefix, key);
  const auto id = file.integer(name, -1, UINT32_MAX);
  // -1, in 32 bits or as it is, says that there is none.
  if (!id || *id == -1 || *id == UINT32_MAX) return std::nullopt;
  if (*id >= static_cast<int64_t>(tokens))
    fail(Category::input, file.path(), ": ", name, " is ", *id, " where the vocabulary has ", tokens,
         " tokens; convert the model again");
  return id;
}

}  // namespace

GgufTokenizerData read_gguf_tokenizer(const GgufFile& file) {
  GgufTokenizerData out;
  out.path = file.path();
  const auto model = file.string(cat(kPrefix, "model"));
  const auto tokens = file.strings(cat(kPrefix, "tokens"));
  if (!model || !tokens || tokens->empty())
    fail(Category::input, file.path(),
         ": tokenizer.ggml.model or .tokens is absent; convert the model again");
  out.model = *model;
  out.tokens = *tokens;
  out.pre = file.string(cat(kPrefix, "pre")).value_or("");
  out.merges = file.strings(cat(kPrefix, "merges")).value_or(std::vector<std::string>());
  const auto check_length = [&](const char* key, size_t length) {
    if (length != out.tokens.size())
      fail(Category::input, file.path(), ": ", kPrefix, key, " has ", length, " entries where there are ",
           out.tokens.size(), " tokens; convert the model again");
  };
  if (const auto types = file.integers(cat(kPrefix, "token_type"))) {
    check_length("token_type", types->size());
    for (const int64_t t : *types) {
      if (t < 0 || t > INT32_MAX)
        fail(Category::input, file.path(), ": ", kPrefix, "token_type holds ", t,
             "; convert the model again");
      out.token_type.push_back(static_cast<int32_t>(t));
    }
  }
  if (const auto scores = file.floats(cat(kPrefix, "scores"))) check_length("scores", scores->size());
  out.bos_id = token_id(file, "bos_token_id", out.tokens.size());
  out.eos_id = token_id(file, "eos_token_id", out.tokens.size());
  out.unk_id = token_id(file, "unknown_token_id", out.tokens.size());
  out.pad_id = token_id(file, "padding_token_id", out.tokens.size());
  out.add_bos = file.boolean(cat(kPrefix, "add_bos_token")).value_or(false);
  out.add_eos = file.boolean(cat(kPrefix, "add_eos_token")).value_or(false);
  out.add_space_prefix = file.boolean(cat(kPrefix, "add_space_prefix")).value_or(false);
  out.chat_template = file.string("tokenizer.chat_template").value_or("");
  return out;
}

}  // namespace qlora
