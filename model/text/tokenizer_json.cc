#include <simdjson.h>

#include <filesystem>
#include <new>

#include "memory/error.h"
#include "memory/file.h"
#include "model/io/json.h"
#include "model/text/tokenizer_builder.h"

// tokenizer.json and the files beside it, as the tokenizers library reads them.
namespace qlora {
namespace {

namespace dom = simdjson::dom;
using std::string_view;

constexpr size_t kLargest = size_t{256} << 20;

class Reader {
 public:
  Reader(TokenizerBuilder& builder, dom::element root) : builder_(builder), root_(root) {}

  void read() {
    const dom::element model = need(root_, "model", "");
    read_model_kind(model);
    read_vocabulary(model);
    read_merges(model);
    if (const auto unknown = text(model, "unk_token"); !unknown.empty())
      builder_.unknown(unknown, flag(model, "fuse_unk"));
    if (flag(model, "ignore_merges")) builder_.ignore_merges();
    refuse_present("normalizer");
    read_pre_tokenizer();
    read_post_processor();
    read_decoder();
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(Args&&... args) const {
    fail(Category::input, builder_.where(), ": ", std::forward<Args>(args)...);
  }

  // Members that are absent and members that are null mean the same.
  std::optional<dom::element> get(dom::element from, string_view key) const {
    dom::element value;
    if (from.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return value;
  }
  dom::element need(dom::element from, string_view key, string_view where) const {
    const auto value = get(from, key);
    if (!value) bad(where, "\"", key, "\" is missing; is this a tokenizer.json?");
    return *value;
  }
  string_view text(dom::element from, string_view key) const {
    const auto value = get(from, key);
    if (!value) return {};
    string_view out;
    if (value->get(out) != simdjson::SUCCESS) bad("\"", key, "\" is not a string; the file is damaged");
    return out;
  }
  bool flag(dom::element from, string_view key, bool absent = false) const {
    const auto value = get(from, key);
    if (!value) return absent;
    bool out;
    if (value->get(out) != simdjson::SUCCESS) bad("\"", key, "\" is not true or false; the file is damaged");
    return out;
  }
  int64_t integer(dom::element value, string_view what) const {
    int64_t out;
    if (value.get(out) != simdjson::SUCCESS) bad(what, " is not an integer; the file is damaged");
    return out;
  }
  dom::array list(dom::element value, string_view what) const {
    dom::array out;
    if (value.get(out) != simdjson::SUCCESS) bad(what, " is not a list; the file is damaged");
    return out;
  }
  [[noreturn]] void unsupported(string_view part, string_view name) const {
    bad(part, " '", name,
        "' is not supported yet; use a model with a byte-level BPE tokenizer (GPT-2's kind)");
  }
  void refuse_present(string_view part) const {
    if (const auto value = get(root_, part)) unsupported(part, text(*value, "type"));
  }

  void read_model_kind(dom::element model) const {
    const string_view type = text(model, "type");
    if (!type.empty() && type != "BPE") unsupported("model", type);
    for (const string_view key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!text(model, key).empty()) unsupported("model option", key);
    if (flag(model, "byte_fallback")) unsupported("model option", "byte_fallback");
    if (const auto dropout = get(model, "dropout")) {
      double p = 1;
      if (dropout->get(p) != simdjson::SUCCESS || p != 0) unsupported("model option", "dropout");
    }
  }

  void read_vocabulary(dom::element model) {
    dom::object vocabulary;
    if (need(model, "vocab", "model: ").get(vocabulary) != simdjson::SUCCESS)
      bad("model: \"vocab\" is not an object; the file is damaged");
    std::optional<dom::array> added;
    if (const auto value = get(root_, "added_tokens")) added = list(*value, "\"added_tokens\"");
    // size() of simdjson saturates at 2^24 - 1.
    builder_.reserve(vocabulary.size() + (added ? added->size() : 0));
    for (const auto [key, value] : vocabulary) builder_.token(key, integer(value, "an id of the vocabulary"));
    if (added)
      for (const dom::element token : *added) read_added(token);
    builder_.seal();
  }

  void read_added(dom::element token) {
    AddedToken a;
    a.content = text(token, "content");
    const int64_t id = integer(need(token, "id", "added_tokens: "), "the id of an added token");
    if (id < 0 || id > INT32_MAX) bad("added token \"", a.content, "\" has id ", id, "; the file is damaged");
    a.id = static_cast<int32_t>(id);
    a.special = flag(token, "special");
    a.single_word = flag(token, "single_word");
    a.lstrip = flag(token, "lstrip");
    a.rstrip = flag(token, "rstrip");
    a.normalized = flag(token, "normalized", !a.special);
    builder_.added(std::move(a));
  }

  void read_merges(dom::element model) {
    const dom::array merges = list(need(model, "merges", "model: "), "model: \"merges\"");
    builder_.reserve_merges(merges.size());
    for (const dom::element merge : merges) {
      string_view line;
      if (merge.get(line) == simdjson::SUCCESS) {
        const size_t space = line.find(' ');
        if (space == string_view::npos || line.find(' ', space + 1) != string_view::npos)
          bad("merge \"", line, "\" is not two tokens with a space between; the file is damaged");
        builder_.merge(line.substr(0, space), line.substr(space + 1));
        continue;
      }
      string_view pair[2];
      size_t n = 0;
      for (const dom::element side : list(merge, "a merge")) {
        if (n == 2 || side.get(pair[n]) != simdjson::SUCCESS)
          bad("a merge is not two tokens; the file is damaged");
        ++n;
      }
      if (n != 2) bad("a merge is not two tokens; the file is damaged");
      builder_.merge(pair[0], pair[1]);
    }
  }

  void read_pre_tokenizer() {
    const auto pre = get(root_, "pre_tokenizer");
    bool byte_level = false;
    if (pre) {
      if (text(*pre, "type") == "Sequence") {
        for (const dom::element step :
             list(need(*pre, "pretokenizers", "pre_tokenizer: "), "\"pretokenizers\""))
          read_step(step, byte_level);
      } else {
        read_step(*pre, byte_level);
      }
    }
    if (!byte_level) unsupported("pre_tokenizer", "none that ends in ByteLevel");
  }

  void read_step(dom::element step, bool& byte_level) {
    const string_view type = text(step, "type");
    if (byte_level) unsupported("pre_tokenizer after ByteLevel:", type);
    if (type == "Digits") {
      builder_.step(DigitsStep{flag(step, "individual_digits")});
    } else if (type == "ByteLevel") {
      builder_.step(ByteLevelStep{flag(step, "add_prefix_space", true), flag(step, "use_regex", true)});
      byte_level = true;
    } else {
      unsupported("pre_tokenizer", type);
    }
  }

  void read_post_processor() {
    const auto post = get(root_, "post_processor");
    if (!post) return;
    if (text(*post, "type") != "Sequence") return read_processor(*post);
    for (const dom::element step : list(need(*post, "processors", "post_processor: "), "\"processors\""))
      read_processor(step);
  }

  void read_processor(dom::element step) {
    const string_view type = text(step, "type");
    if (type == "ByteLevel") return;  // moves offsets only
    if (type != "TemplateProcessing") unsupported("post_processor", type);
    std::vector<int32_t> around[2];
    bool inside = false;
    for (const dom::element part : list(need(step, "single", "post_processor: "), "\"single\"")) {
      if (get(part, "Sequence")) {
        if (inside) unsupported("post_processor", "TemplateProcessing with the text twice");
        inside = true;
        continue;
      }
      const auto special = get(part, "SpecialToken");
      if (!special) bad("post_processor: an entry of \"single\" is neither Sequence nor SpecialToken");
      for (const int32_t id : template_ids(step, text(*special, "id"))) around[inside].push_back(id);
    }
    if (!inside) bad("post_processor: \"single\" leaves the text out; the file is damaged");
    if (!builder_.so_far().encode("", true).empty())
      unsupported("post_processor", "TemplateProcessing twice");
    builder_.around(std::move(around[0]), std::move(around[1]));
  }

  std::vector<int32_t> template_ids(dom::element step, string_view name) const {
    const auto entry = get(need(step, "special_tokens", "post_processor: "), name);
    if (!entry) bad("post_processor: \"", name, "\" is not among its special_tokens; the file is damaged");
    std::vector<int32_t> ids;
    for (const dom::element value : list(need(*entry, "ids", "post_processor: "), "\"ids\"")) {
      const int64_t id = integer(value, "an id of post_processor");
      if (id < 0 || id >= builder_.so_far().vocab_size())
        bad("post_processor: id ", id, " is not in the vocabulary; the file is damaged");
      ids.push_back(static_cast<int32_t>(id));
    }
    return ids;
  }

  void read_decoder() const {
    const auto decoder = get(root_, "decoder");
    const string_view type = decoder ? text(*decoder, "type") : "none";
    if (type != "ByteLevel") unsupported("decoder", type);
  }

  TokenizerBuilder& builder_;
  dom::element root_;
};

dom::element parse(dom::parser& parser, const std::string& path, const std::string& bytes) {
  dom::element root;
  const auto error = parser.parse(bytes).get(root);
  if (error == simdjson::MEMALLOC) throw std::bad_alloc();
  if (error) fail(Category::input, path, ": ", simdjson::error_message(error), "; the file is damaged");
  if (!root.is_object()) fail(Category::input, path, ": not a JSON object; the file is damaged");
  return root;
}

void read_tokenizer(TokenizerBuilder& builder, const std::string& path) {
  dom::parser parser;
  const std::string bytes = read_file(path, kLargest);
  Reader(builder, parse(parser, path, bytes)).read();
}

// bos_token, eos_token and the like, each its text or an object with `content`; files read earlier win.
// Not simdjson: model_max_length is often 10^30, which it refuses.
void read_names(TokenizerBuilder& builder, const std::string& path) {
  const Json root = parse_json(read_file(path, kLargest), path);
  if (!root.is_object()) fail(Category::input, path, ": not a JSON object; the file is damaged");
  const auto take = [&](const std::string& name, const Json& value) {
    const bool object = value.is_object() && value.contains("content");
    const Json& text = object ? value["content"] : value;
    if (text.is_string() && !builder.so_far().named_specials().count(name))
      builder.named(name, text.get<std::string>());
  };
  for (const char* key :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
    if (root.contains(key)) take(key, root[key]);
  if (root.contains("extra_special_tokens") && root["extra_special_tokens"].is_object())
    for (const auto& [key, value] : root["extra_special_tokens"].items()) take(key, value);
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_json(const std::string& path) {
  TokenizerBuilder builder(path);
  read_tokenizer(builder, path);
  return builder.finish();
}

std::unique_ptr<Tokenizer> Tokenizer::from_folder(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!std::filesystem::exists(path))
    fail(Category::input, folder,
         ": no tokenizer.json; save the tokenizer in its fast form into this folder");
  TokenizerBuilder builder(path);
  read_tokenizer(builder, path);
  builder.from_folder(folder);
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"})
    if (const std::string file = folder + "/" + name; std::filesystem::exists(file))
      read_names(builder, file);
  return builder.finish();
}

}  // namespace qlora
