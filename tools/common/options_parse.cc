#include <algorithm>

#include "memory/error.h"
#include "tools/common/config_file.h"
#include "tools/common/option_match.h"
#include "tools/common/option_value.h"
#include "tools/common/options.h"

namespace qlora::tools {

// Reads the command line and then the configuration file; each into its own map, so that the command line
// wins whatever the order, and every line of the file is checked even where it is overridden.
class Parser {
 public:
  Parser(const Table& table, const ParseContext& context)
      : table_(table), context_(context), options_(table) {}

  Options run(const std::vector<std::string>& arguments) {
    read_command_line(arguments);
    if (options_.request_ != Options::Request::run) return std::move(options_);
    for (const std::string& path : config_paths_) read_config(path);
    merge();
    check_needs();
    check_required();
    return std::move(options_);
  }

 private:
  struct Given {
    std::vector<std::string> values;  // empty: said to be unset
    std::string origin;
    const Alias* alias;  // the name it was given by; null: the option's own
  };
  using Map = std::map<std::string, Given>;
  struct Need {
    std::vector<std::string> with;
    std::string message;
  };

  void read_command_line(const std::vector<std::string>& words) {
    for (size_t i = 0; i < words.size() && options_.request_ == Options::Request::run; ++i) {
      const std::string& word = words[i];
      if (word == "--") {
        while (++i < words.size()) operand(words[i]);
      } else if (word == "-h") {
        options_.request_ = Options::Request::help;
      } else if (word.rfind("--", 0) == 0) {
        i += read_option(word, i + 1 < words.size() ? &words[i + 1] : nullptr);
      } else if (word.size() > 1 && word[0] == '-') {
        fail(Category::usage, "unknown option ", word, "; options begin with two dashes, --help lists them");
      } else {
        operand(word);
      }
    }
  }

  void operand(const std::string& word) {
    if (table_.operand.empty())
      fail(Category::usage, "unexpected argument '", word,
           "'; values follow an option such as --model, --help lists them");
    if (command_line_.count(table_.operand))
      fail(Category::usage, "unexpected argument '", word, "' after '",
           command_line_[table_.operand].values.front(), "'; give one ", table_.operand);
    const Option* option = match_name(table_, table_.operand).option;
    command_line_[option->name] = {{canonical_value(*option, word, option->name)}, option->name, nullptr};
  }

  // `--NAME`, `--NAME=VALUE`. Returns how many of the following words were its value (0 or 1).
  size_t read_option(const std::string& word, const std::string* next) {
    const size_t equals = word.find('=');
    const std::string name =
        with_dashes(std::string_view(word).substr(2, equals == std::string::npos ? equals : equals - 2));
    std::optional<std::string> value;
    if (equals != std::string::npos) value = word.substr(equals + 1);
    if (take_request(name, value)) return 0;

    const std::string origin = "--" + name;
    const Match match = match_name(table_, name);
    if (match.refusal) return refuse(match, origin, value, next);
    if (!match.option) unknown_name(table_, name, origin, "option");
    if (match.negated && value)
      fail(Category::usage, origin, " takes no value; give it alone or --", name.substr(3), "=VALUE");
    size_t taken = 0;
    if (match.negated) {
      value = "false";
    } else if (!value && stands_alone(match)) {
      taken = next && is_value_of(match, *next) ? 1 : 0;
      value = taken ? *next : bare_value(match);
    } else if (!value) {
      taken = 1;
      value = following(match, origin, next);
    }
    apply(match, {*value}, origin, command_line_, false);
    return taken;
  }

  std::string following(const Match& match, const std::string& origin, const std::string* next) const {
    const char* what = "; give ";
    if (!next) fail(Category::usage, origin, " needs a value", what, origin, " ", value_name(*match.option));
    // A text may begin with dashes, but the name of an option in its place is a forgotten value.
    if (next->rfind("--", 0) == 0 && next->size() > 2) {
      const std::string head =
          next->substr(2, next->find('=') == std::string::npos ? next->npos : next->find('=') - 2);
      const Match other = match_name(table_, with_dashes(head));
      if (other.option || other.refusal || is_request(with_dashes(head)))
        fail(Category::usage, origin, " needs a value and ", *next, " follows", what, origin, " ",
             value_name(*match.option), ", or ", origin, "=", *next, " if that is the text meant");
    }
    return *next;
  }

  static bool is_request(const std::string& name) {
    return name == "help" || name == "version" || name == "config" || name == "help-man" ||
           name == "help-bash-completion";
  }

  bool take_request(const std::string& name, const std::optional<std::string>& value) {
    using Request = Options::Request;
    const Request request = name == "help"                   ? Request::help
                            : name == "version"              ? Request::version
                            : name == "help-man"             ? Request::man
                            : name == "help-bash-completion" ? Request::bash_completion
                                                             : Request::run;
    if (request == Request::run) return false;
    if (value) fail(Category::usage, "--", name, " takes no value; give it alone");
    options_.request_ = request;
    return true;
  }

  size_t refuse(const Match& match, const std::string& origin, const std::optional<std::string>& value,
                const std::string* next) const {
    const std::string said = value ? *value : match.negated ? "false" : next ? *next : "";
    for (const std::string& harmless : match.refusal->harmless)
      if (!said.empty() && equal_without_case(said, harmless)) return value || match.negated ? 0 : 1;
    fail(Category::usage, origin, " is not built into this program; ", match.refusal->remedy);
  }

  void read_config(const std::string& path) {
    const ConfigNode root = read_config_file(path);
    for (const auto& [key, node] : root.entries) {
      const std::string origin = node.line > 0 ? cat(path, ":", node.line, ": ", key) : cat(path, ": ", key);
      const std::string name = with_dashes(key);
      const Match match = match_name(table_, name);
      const bool null = node.kind == ConfigNode::Kind::null;  // peers' examples leave keys empty for "off"
      if (match.refusal) {
        if (!null) refuse_key(match, origin, node);
      } else if (!match.option || is_request(name)) {
        unknown_name(table_, name, origin, "key");
      } else if (!null) {
        if (match.negated && parse_bool(node.scalar) != true)
          fail(Category::usage, origin, ": takes true only; drop the line or give ", key.substr(3));
        apply(match,
              match.negated ? std::vector<std::string>{"false"} : node_values(*match.option, node, origin),
              origin, config_, true);
      }
    }
  }

  static void refuse_key(const Match& match, const std::string& origin, const ConfigNode& node) {
    const bool empty = node.kind != ConfigNode::Kind::scalar && node.items.empty() && node.entries.empty();
    if (empty || (node.kind == ConfigNode::Kind::scalar && node.scalar.empty())) return;
    for (const std::string& harmless : match.refusal->harmless)
      if (node.kind == ConfigNode::Kind::scalar && equal_without_case(node.scalar, harmless)) return;
    fail(Category::usage, origin, " is not built into this program; ", match.refusal->remedy);
  }

  static std::vector<std::string> node_values(const Option& option, const ConfigNode& node,
                                              const std::string& origin) {
    using Node = ConfigNode::Kind;
    if (node.kind == Node::scalar) return {node.scalar};
    const bool list = option.kind == Kind::words || option.kind == Kind::repeat;
    if (node.kind == Node::sequence && list) {
      std::vector<std::string> values;
      for (const ConfigNode& item : node.items) {
        if (item.kind != Node::scalar)
          fail(Category::usage, origin, ": entries with a structure are not read; give ", option.name,
               " a plain list");
        if (option.kind == Kind::words && item.scalar.find(',') != std::string::npos)
          fail(Category::usage, origin, ": the entry '", item.scalar,
               "' holds a comma; give the whole as one text");
        values.push_back(item.scalar);
      }
      return option.kind == Kind::repeat ? values : std::vector<std::string>{joined(values)};
    }
    if (node.kind == Node::mapping && option.kind == Kind::pairs) {
      std::vector<std::string> values;
      for (const auto& [key, value] : node.entries) {
        if (value.kind != Node::scalar || value.scalar.find(',') != std::string::npos)
          fail(Category::usage, origin, ": ", key, " is not one plain value; give key: value");
        values.push_back(key + "=" + value.scalar);
      }
      return {joined(values)};
    }
    fail(Category::usage, origin, ": a ", node.kind == Node::sequence ? "list" : "mapping",
         " is not read here; give ", with_underscores(option.name), " one value");
  }

  static std::string joined(const std::vector<std::string>& values) {
    std::string out;
    for (const std::string& value : values) out += (out.empty() ? "" : ",") + value;
    return out;
  }

  void apply(const Match& match, std::vector<std::string> values, const std::string& origin, Map& map,
             bool once) {
    const Option& option = *match.option;
    if (option.cuda_only && !context_.cuda && !table_.other_devices)
      fail(Category::usage, origin,
           " is for CUDA, which is not built into this program; give --memory for the CPU");
    for (std::string& value : values) {
      const ValueRule* rule = find_rule(match, value);
      if (rule && rule->then == ValueRule::refuse)
        fail(Category::usage, origin, ": ", value, " ", rule->text);
      if (rule && !rule->with.empty())
        needs_.push_back({rule->with, cat(origin, ": ", value, " ", rule->text)});
      if (rule && rule->then == ValueRule::unset) {
        values.clear();
        break;
      }
      if (rule && rule->then != ValueRule::use) {
        // The option's own word for "unset" also overrides the file; a peer's key that says nothing does not.
        if (!match.alias && rule->then == ValueRule::ignore) map[option.name] = {{}, origin, nullptr};
        return;
      }
      if (!rule && match.alias && match.alias->toggle)
        fail(Category::usage, origin, ": '", value, "' is neither true nor false; give one of them, or --",
             option.name);
      value = canonical_value(option, rule ? rule->text : value, origin);
      check_device(option, value, origin);
    }
    const auto found = map.find(option.name);
    // The same name again replaces; two names that disagree are no replacement but a mistake.
    const bool other_name = found != map.end() && (once || found->second.alias != match.alias);
    if (other_name && option.kind != Kind::repeat && found->second.values != values)
      fail(Category::usage, origin, ": contradicts ", found->second.origin, "; keep one of them");
    if (found != map.end() && option.kind == Kind::repeat && !once) {
      found->second.values.insert(found->second.values.end(), values.begin(), values.end());
    } else if (option.name == "config") {
      config_paths_ = values;
    } else {
      map[option.name] = {std::move(values), origin, match.alias};
    }
  }

  void check_device(const Option& option, const std::string& value, const std::string& origin) const {
    if (option.kind == Kind::device && !context_.cuda && !table_.other_devices &&
        parse_device(value)->which == DeviceName::Which::cuda)
      fail(Category::usage, origin, ": the CUDA backend is not built into this program; give auto or cpu");
  }

  void merge() {
    config_.insert(command_line_.begin(), command_line_.end());
    for (auto& [name, given] : command_line_) config_[name] = given;
    for (auto& [name, given] : config_)
      options_.entries_[name] = {given.values, given.values.empty() ? std::string() : given.origin};
  }

  void check_needs() const {
    for (const Need& need : needs_)
      if (std::none_of(need.with.begin(), need.with.end(),
                       [this](const std::string& name) { return options_.given(name); }))
        fail(Category::usage, need.message);
  }

  void check_required() const {
    std::string missing;
    for (const Option& option : table_.options) {
      const auto* entry = options_.entry(option.name);
      if (option.required && (!entry || entry->values.front().empty()))
        missing += cat(missing.empty() ? "" : " ",
                       table_.operand == option.name ? "" : "--" + option.name + " ", value_name(option));
    }
    if (!missing.empty()) fail(Category::usage, "missing ", missing, "; --help shows a working example");
  }

  const Table& table_;
  const ParseContext context_;
  Options options_;
  Map command_line_, config_;
  std::vector<std::string> config_paths_;
  std::vector<Need> needs_;
};

Options parse_options(const Table& table, const std::vector<std::string>& arguments,
                      const ParseContext& context) {
  return Parser(table, context).run(arguments);
}

}  // namespace qlora::tools
