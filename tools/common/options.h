#pragma once
// The options of a tool, declared once: parsing, configuration files, help, manual page, completion, the echo
// into config.yaml and result.json all derive from the same table.
//
// Why the command line is read by this file and not by Boost.Program_options: it has no `--no-NAME`, takes no
// underscores for dashes, cannot let a switch look at the next word (`--packing data.jsonl` would be an
// error), refuses `--system=` with nothing behind the sign, and a configuration file must go through the same
// names, aliases and refusals with its own file and line. What is left of it, a typed map, is the smaller
// part of this header.
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qlora::tools {

enum class Kind {
  text,     // anything (UTF-8)
  integer,  // int64, decimal, within [min, max]
  real,     // finite double within [min, max]
  bytes,    // `auto`, or a size: 500MiB, 8GiB, 680MB, 1048576
  toggle,   // a switch: alone, --no-NAME, or true|false
  choice,   // one of `choices`
  words,    // a comma list; where `choices` are given, of those (`none` only alone)
  pairs,    // key=value,…
  device,   // auto, cpu, cuda, cuda:N
  repeat,   // text, may be given several times
};

// What a certain value means instead of itself. `from` is compared without case; "*" is any value.
struct ValueRule {
  enum Then {
    use,     // `text` is the value
    ignore,  // says nothing here: the option stays unset
    unset,   // the option is unset, which contradicts a value of the same place; one of `with` must be given
    needs,   // as ignore, and one of `with` must be given
    refuse,  // known, not built: `text` is the remedy
  };
  std::string from;
  Then then = use;
  std::string text;
  std::vector<std::string> with = {};  // options; when none of them is given, `text` is the error
};

// A name that a peer uses for the option. Its rules come before the option's own.
struct Alias {
  std::string name;
  std::vector<ValueRule> values = {};
  bool toggle = false;  // stands alone as `true`; `--no-NAME` is `false`; a value without a rule is an error
};

struct Option {
  std::string name;  // with dashes
  Kind kind = Kind::text;
  std::string fallback = {};  // the value when nobody gives one; empty: the option is then unset
  std::string shown = {};     // what --help says in place of an empty fallback
  std::string value = {};     // the value's name in --help
  std::string help = {};
  std::string group = {};
  std::vector<std::string> choices = {};
  std::vector<Alias> aliases = {};
  std::vector<ValueRule> rules = {};
  std::string bare = {};  // kind choice: the value when the option stands alone; empty: a value must follow
  double min = -std::numeric_limits<double>::infinity(), max = std::numeric_limits<double>::infinity();
  bool above_min = false;  // min itself is not allowed
  bool below_max = false;  // max itself is not allowed
  bool required = false;
  bool transient = false;  // about this one call: not among the settings in force
  bool cuda_only = false;  // refused by a program without CUDA
};

// A name that peers know and this program does not have. A trailing '*' stands for any ending. The harmless
// values (compared without case) say "off" and pass.
struct Refusal {
  std::string name;
  std::string remedy;
  std::vector<std::string> harmless = {};
};

struct Table {
  std::string program;       // qlora-train
  std::string summary;       // one sentence
  std::string usage;         // what follows the program's name
  std::string example;       // a command that works as it stands in a clone after tools/quickstart
  std::string operand = {};  // the option that takes a word without dashes; empty: such a word is an error
  std::vector<Option> options = {};
  std::vector<Refusal> refusals = {};
  bool other_devices = false;  // a CUDA device may be named that neither program nor machine has
};

// What parsing must know about the program it is linked into.
struct ParseContext {
  bool cuda = false;
};

struct Setting {
  std::string name;  // with dashes
  Kind kind;
  std::vector<std::string> values;  // one, but for Kind::repeat
};

class Options {
 public:
  enum class Request { run, help, version, man, bash_completion };

  explicit Options(const Table& table);

  Request request() const { return request_; }
  const Table& table() const { return *table_; }

  // The value in force: given, else the fallback. T is std::string, int64_t, double, bool, uint64_t (bytes;
  // `auto` is "no value"), or std::vector<std::string> (words, repeat). No such option, or the wrong T: an
  // internal error.
  template <class T>
  std::optional<T> find(std::string_view name) const;
  // As find; an option that is unset is an internal error: ask only for those that have a fallback or are
  // required.
  template <class T>
  T get(std::string_view name) const;
  // key=value pairs in the order written.
  std::vector<std::pair<std::string, std::string>> pairs(std::string_view name) const;

  // True when the command line or the configuration file gave it (and not the fallback).
  bool given(std::string_view name) const;
  // Where it was given, for messages: "--bits" or "run.yaml:12: bits"; the name alone for a fallback.
  std::string origin(std::string_view name) const;

  // Records what an unset or automatic setting came to, for settings_in_force; given() stays as it was.
  void settle(std::string_view name, const std::string& value);

  // Every setting that has a value, in the table's order, without the transient ones.
  std::vector<Setting> settings_in_force() const;
  // config.yaml: read back by --config to the same settings, bit for bit.
  std::string to_yaml() const;
  nlohmann::ordered_json to_json() const;

 private:
  friend class Parser;
  struct Entry {
    std::vector<std::string> values;
    std::string origin;  // empty: nobody gave it
  };
  const Option& option(std::string_view name) const;
  const Entry* entry(std::string_view name) const;

  const Table* table_;
  Request request_ = Request::run;
  std::map<std::string, Entry, std::less<>> entries_;
};

template <>
std::optional<std::string> Options::find(std::string_view name) const;
template <>
std::optional<int64_t> Options::find(std::string_view name) const;
template <>
std::optional<double> Options::find(std::string_view name) const;
template <>
std::optional<bool> Options::find(std::string_view name) const;
template <>
std::optional<uint64_t> Options::find(std::string_view name) const;
template <>
std::optional<std::vector<std::string>> Options::find(std::string_view name) const;

// `arguments` without the program's name. A scalar given several times on the command line: the last one
// counts. In a configuration file that is an error. Errors: usage; an unreadable --config file: input.
Options parse_options(const Table& table, const std::vector<std::string>& arguments,
                      const ParseContext& context = {});

// Names as a table has them: dashes for underscores.
std::string with_dashes(std::string_view name);
std::string with_underscores(std::string_view name);

}  // namespace qlora::tools
