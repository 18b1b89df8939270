#include "tools/common/config_file.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "memory/error.h"
#include "memory/file.h"

namespace qlora::tools {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;
constexpr size_t kMostLevels = 16;

std::string place(const std::string& path, int line) { return line > 0 ? cat(path, ":", line) : path; }

// Grows the tree from a stream of events; both formats end here, so the limits hold for both.
class Builder {
 public:
  explicit Builder(const std::string& path) : path_(path) {}

  void open(ConfigNode::Kind kind, int line) {
    if (open_.size() >= kMostLevels)
      fail(Category::input, place(path_, line), ": nested deeper than ", kMostLevels,
           " levels; a configuration is one flat mapping");
    ConfigNode node;
    node.kind = kind;
    node.line = line;
    open_.push_back({std::move(node), {}, {}, false});
  }

  void close() {
    ConfigNode node = std::move(open_.back().node);
    open_.pop_back();
    add(std::move(node));
  }

  void scalar(std::string text, bool null, int line) {
    ConfigNode node;
    node.kind = null ? ConfigNode::Kind::null : ConfigNode::Kind::scalar;
    node.scalar = std::move(text);
    node.line = line;
    add(std::move(node));
  }

  void key(std::string name, int line) {
    Level& level = open_.back();
    if (!level.keys.insert(name).second)
      fail(Category::input, place(path_, line), ": the key '", name, "' occurs twice; keep one of them");
    level.key = std::move(name);
    level.has_key = true;
  }

  ConfigNode root() && {
    if (root_.kind == ConfigNode::Kind::null) root_.kind = ConfigNode::Kind::mapping;
    if (root_.kind != ConfigNode::Kind::mapping)
      fail(Category::input, place(path_, root_.line),
           ": not a mapping of names to values; write lines like `lora_r: 16`");
    return std::move(root_);
  }

 private:
  struct Level {
    ConfigNode node;
    std::set<std::string> keys;
    std::string key;
    bool has_key;
  };

  void add(ConfigNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = open_.back();
    if (level.node.kind == ConfigNode::Kind::sequence) {
      level.node.items.push_back(std::move(node));
    } else if (level.has_key) {
      level.node.entries.emplace_back(std::move(level.key), std::move(node));
      level.has_key = false;
    } else if (node.kind == ConfigNode::Kind::scalar) {  // YAML tells keys and values alike
      key(std::move(node.scalar), node.line);
    } else {
      fail(Category::input, place(path_, node.line), ": a key is not plain text; write `name: value`");
    }
  }

  const std::string& path_;
  std::vector<Level> open_;
  ConfigNode root_;
};

class YamlEvents : public YAML::EventHandler {
 public:
  YamlEvents(Builder& builder, const std::string& path) : builder_(builder), path_(path) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { builder_.scalar("", true, mark.line + 1); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(Category::input, place(path_, mark.line + 1), ": YAML aliases are not read; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    check_tag(mark, tag);
    const bool plain = tag == "?" || tag.empty();
    const bool null =
        plain && (value.empty() || value == "~" || value == "null" || value == "Null" || value == "NULL");
    builder_.scalar(value, null, mark.line + 1);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    check_tag(mark, tag);
    builder_.open(ConfigNode::Kind::sequence, mark.line + 1);
  }
  void OnSequenceEnd() override { builder_.close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    check_tag(mark, tag);
    builder_.open(ConfigNode::Kind::mapping, mark.line + 1);
  }
  void OnMapEnd() override { builder_.close(); }

 private:
  void check_tag(const YAML::Mark& mark, const std::string& tag) const {
    for (const char* known : {"", "?", "!", "str", "int", "float", "bool", "null", "seq", "map"})
      if (tag == known || tag == cat("tag:yaml.org,2002:", known)) return;
    fail(Category::input, place(path_, mark.line + 1), ": the tag ", tag.substr(0, 40),
         " is not read; drop it");
  }

  Builder& builder_;
  const std::string& path_;
};

class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonEvents(Builder& builder, const std::string& text, const std::string& path)
      : builder_(builder), text_(text), path_(path) {}

  bool null() override { return value("", true); }
  bool boolean(bool v) override { return value(v ? "true" : "false"); }
  bool number_integer(number_integer_t v) override { return value(std::to_string(v)); }
  bool number_unsigned(number_unsigned_t v) override { return value(std::to_string(v)); }
  bool number_float(number_float_t, const string_t& text) override { return value(text); }
  bool string(string_t& text) override { return value(text); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(ConfigNode::Kind::mapping); }
  bool start_array(size_t) override { return open(ConfigNode::Kind::sequence); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    builder_.key(name, 0);
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception&) override {
    const auto end =
        text_.begin() + static_cast<std::ptrdiff_t>(std::min(byte > 0 ? byte - 1 : 0, text_.size()));
    fail(Category::input, path_, ":", 1 + std::count(text_.begin(), end, '\n'), ": malformed JSON at byte ",
         byte, "; check quotes, commas and brackets there");
  }

 private:
  bool value(const std::string& text, bool null = false) {
    builder_.scalar(text, null, 0);
    return true;
  }
  bool open(ConfigNode::Kind kind) {
    builder_.open(kind, 0);
    return true;
  }
  bool close() {
    builder_.close();
    return true;
  }

  Builder& builder_;
  const std::string& text_;
  const std::string& path_;
};

void parse_yaml(const std::string& text, const std::string& path, Builder& builder) {
  std::istringstream stream(text);
  YamlEvents events(builder, path);
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(events);
    if (parser) {
      // A trailing `...` or comment is no document; anything that yields an event is.
      Builder rest(path);
      YamlEvents more(rest, path);
      if (parser.HandleNextDocument(more))
        fail(Category::input, path, ": holds more than one YAML document; keep the first");
    }
  } catch (const YAML::Exception& error) {
    fail(Category::input, place(path, error.mark.line + 1), ": malformed YAML (", error.msg,
         "); correct that line");
  }
}

bool is_json(const std::string& text, const std::string& path) {
  const std::string extension = std::filesystem::path(path).extension().string();
  if (extension == ".json") return true;
  if (extension == ".yaml" || extension == ".yml") return false;
  const size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string::npos && text[first] == '{';
}

}  // namespace

ConfigNode parse_config(const std::string& text, const std::string& path) {
  if (text.find('\0') != std::string::npos)
    fail(Category::input, path, ": holds a zero byte; this is no configuration, give the right file");
  Builder builder(path);
  if (is_json(text, path)) {
    JsonEvents events(builder, text, path);
    nlohmann::json::sax_parse(text, &events);
  } else {
    parse_yaml(text, path, builder);
  }
  return std::move(builder).root();
}

ConfigNode read_config_file(const std::string& path) {
  return parse_config(read_file(path, kMostBytes), path);
}

}  // namespace qlora::tools
