#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "memory/error.h"
#include "memory/file.h"
#include "model/text/tokenizer_builder.h"

// A GGUF's tokenizer, and saving: a GGUF's is written as the tokenizer.json it stands for.
namespace qlora {
namespace {

using Json = nlohmann::ordered_json;

enum GgufTokenType { kControl = 3, kUserDefined = 4 };

// tokenizer.ggml.pre names a pipeline. Of byte-level BPE these are GPT-2's regex, with single digits or
// without.
bool splits_digits(const GgufTokenizerData& data) {
  for (const char* name : {"smollm", "starcoder", "refact"})
    if (data.pre == name) return true;
  for (const char* name : {"gpt-2", "phi-2"})
    if (data.pre == name) return false;
  fail(Category::input, data.path, ": tokenizer.ggml.pre '", data.pre,
       "' is not supported yet; use the model's Hugging Face folder");
}

int32_t checked_id(const GgufTokenizerData& data, int64_t id, const char* key) {
  if (id < 0 || id >= static_cast<int64_t>(data.tokens.size()))
    fail(Category::input, data.path, ": tokenizer.ggml.", key, " is ", id, ", outside of the ",
         data.tokens.size(), " tokens; the file is damaged");
  return static_cast<int32_t>(id);
}

void check_data(const GgufTokenizerData& data) {
  if (data.model != "gpt2")
    fail(Category::input, data.path, ": tokenizer.ggml.model '", data.model,
         "' is not supported yet; use a model with a byte-level BPE tokenizer (gpt2)");
  if (data.token_type.size() != data.tokens.size())
    fail(Category::input, data.path, ": tokenizer.ggml.token_type has ", data.token_type.size(),
         " entries for ", data.tokens.size(), " tokens; the file is damaged");
}

AddedToken added_token(const GgufTokenizerData& data, size_t id) {
  AddedToken a;
  a.id = static_cast<int32_t>(id);
  a.content = data.tokens[id];
  a.special = data.token_type[id] == kControl;
  return a;
}

bool is_added(const GgufTokenizerData& data, size_t id) {
  return data.token_type[id] == kControl || data.token_type[id] == kUserDefined;
}

Json pipeline(const GgufTokenizerData& data) {
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", data.add_space_prefix},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  if (!splits_digits(data)) return byte_level;
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, byte_level})}};
}

Json post_processor(const GgufTokenizerData& data, const Tokenizer& tokenizer) {
  Json single = Json::array(), names = Json::object();
  const auto put = [&](bool wanted, const char* name) {
    const auto id = wanted ? tokenizer.named_id(name) : std::nullopt;
    if (!id) return;
    const std::string text = tokenizer.named_specials().at(name);
    single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
    names[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
  };
  put(data.add_bos, "bos_token");
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  put(data.add_eos, "eos_token");
  if (names.empty()) return nullptr;
  Json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", names}};
}

// An object's text without its last brace, to go on with another key.
std::string opened(const Json& object) {
  std::string text = object.dump();
  text.back() = ',';
  return text;
}

// Token by token: the text as one value would take tens of MiB in the middle of a run.
void write_tokenizer_json(const std::string& path, const GgufTokenizerData& data,
                          const Tokenizer& tokenizer) {
  Json added = Json::array();
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (!is_added(data, id)) continue;
    added.push_back({{"id", id},
                     {"content", data.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", data.token_type[id] == kControl}});
  }
  const Json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false}};
  const Json around = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", pipeline(data)},
      {"post_processor", post_processor(data, tokenizer)},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}}};
  FileWriter out(path);
  out.write(opened(around) + "\"model\":" + opened(model) + "\"vocab\":{");
  for (size_t id = 0; id < data.tokens.size(); ++id)
    out.write(cat(id == 0 ? "" : ",", Json(data.tokens[id]).dump(), ":", id));
  out.write("},\"merges\":[");
  for (size_t i = 0; i < data.merges.size(); ++i) {
    const std::string& merge = data.merges[i];
    const size_t space = merge.find(' ');
    out.write((i == 0 ? "" : ",") + Json({merge.substr(0, space), merge.substr(space + 1)}).dump());
  }
  out.write("]}}");
  out.commit();
}

// In pieces: tokenizers of large vocabularies are tens of MiB.
void copy_file(const std::string& from, const std::string& to) {
  constexpr size_t kPiece = size_t{256} << 10;
  const MappedFile in(from);
  FileWriter out(to);
  for (size_t at = 0; at < in.size(); at += kPiece) {
    const size_t n = std::min(kPiece, in.size() - at);
    out.write(in.data() + at, n);
    in.forget(at, n);
  }
  out.commit();
}

Json tokenizer_config(const Tokenizer& tokenizer) {
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  for (const auto& [name, text] : tokenizer.named_specials()) config[name] = text;
  return config;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const GgufTokenizerData& data) {
  check_data(data);
  TokenizerBuilder builder(data.path);
  builder.reserve(data.tokens.size());
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    if (is_added(data, id))
      builder.added(added_token(data, id));
    else
      builder.token(data.tokens[id], static_cast<int64_t>(id));
  }
  builder.seal();
  builder.reserve_merges(data.merges.size());
  for (const std::string& merge : data.merges) {
    const size_t space = merge.find(' ');
    if (space == std::string::npos || merge.find(' ', space + 1) != std::string::npos)
      fail(Category::input, data.path, ": merge \"", merge, "\" is not two tokens with a space between");
    builder.merge(std::string_view(merge).substr(0, space), std::string_view(merge).substr(space + 1));
  }
  if (splits_digits(data)) builder.step(DigitsStep{true});
  builder.step(ByteLevelStep{data.add_space_prefix, true});
  const auto name = [&](const char* token, const char* key, std::optional<int64_t> id) {
    if (id) builder.named(token, data.tokens[static_cast<size_t>(checked_id(data, *id, key))]);
  };
  name("bos_token", "bos_token_id", data.bos_id);
  name("eos_token", "eos_token_id", data.eos_id);
  name("unk_token", "unknown_token_id", data.unk_id);
  name("pad_token", "padding_token_id", data.pad_id);
  std::vector<int32_t> prefix, suffix;
  if (data.add_bos && data.bos_id) prefix.push_back(static_cast<int32_t>(*data.bos_id));
  if (data.add_eos && data.eos_id) suffix.push_back(static_cast<int32_t>(*data.eos_id));
  builder.around(std::move(prefix), std::move(suffix));
  builder.from_gguf(data);
  return builder.finish();
}

void Tokenizer::save(const std::string& folder) const {
  namespace fs = std::filesystem;
  if (gguf_) {
    write_tokenizer_json(folder + "/tokenizer.json", *gguf_, *this);
    write_file(folder + "/tokenizer_config.json", tokenizer_config(*this).dump(2) + "\n");
    return;
  }
  check(!source_folder_.empty(), "a tokenizer read from a lone tokenizer.json cannot be saved");
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"}) {
    const fs::path from = fs::path(source_folder_) / name, to = fs::path(folder) / name;
    std::error_code none;
    if (!fs::exists(from, none) || fs::equivalent(from, to, none)) continue;
    copy_file(from.string(), to.string());
  }
}

}  // namespace qlora
