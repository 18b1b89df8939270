#include "tools/common/option_help.h"

#include <algorithm>
#include <sstream>

#include "memory/error.h"
#include "tools/common/option_value.h"

namespace qlora::tools {
namespace {

constexpr const char* kExitCodes =
    "0 done, 1 internal error, 2 usage or configuration, 3 an input absent, unreadable or unsupported, 4 out "
    "of memory, "
    "5 the system failed while reading or writing, 6 diverged, 130 or 143 after a signal.";
constexpr const char* kNames =
    "Dashes and underscores are the same. A switch stands alone, as --no-NAME, or takes true|false. Sizes: "
    "MB is 10^6 "
    "bytes, MiB 2^20. Names that PEFT, TRL and Axolotl use are understood.";

// `text` in lines that start at column `indent`; the first line continues where the caller stands, at
// `column`.
std::string wrapped(const std::string& text, size_t indent, size_t column, size_t columns) {
  std::string out;
  std::istringstream words(text);
  bool first = true;
  for (std::string word; words >> word; first = false) {
    if (!first && column + 1 + word.size() > columns) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (!first) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  return out;
}

std::string left_side(const Table& table, const Option& option) {
  if (table.operand == option.name) return value_name(option);
  if (option.kind == Kind::toggle) return "--[no-]" + option.name;
  return "--" + option.name + " " + value_name(option);
}

std::string default_text(const Option& option) {
  if (option.required) return "required";
  if (option.kind == Kind::toggle) return option.fallback == "true" ? "on" : "off";
  return option.fallback.empty() ? option.shown : option.fallback;
}

// Groups in the order in which the table first names them.
std::vector<std::string> groups(const Table& table) {
  std::vector<std::string> names;
  for (const Option& option : table.options)
    if (std::find(names.begin(), names.end(), option.group) == names.end()) names.push_back(option.group);
  return names;
}

// Text for troff: no line may begin with a control character, backslashes and dashes are escaped.
std::string troff(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else
      out += c;
  }
  return out.empty() || (out[0] != '.' && out[0] != '\'') ? out : "\\&" + out;
}

std::string single_quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

std::string help_text(const Table& table, int columns) {
  const size_t width = static_cast<size_t>(std::max(columns, 40)), indent = 32;
  std::ostringstream out;
  out << wrapped(table.program + " " + table.summary, 0, 0, width)
      << "\n\nusage: " << wrapped(table.program + " " + table.usage + " [options]", 7, 7, width)
      << "\nexample: " << table.example << "\n";
  for (const std::string& group : groups(table)) {
    out << "\n" << group << "\n";
    for (const Option& option : table.options) {
      if (option.group != group) continue;
      std::string left = "  " + left_side(table, option), help = option.help;
      if (left.size() > width) {  // a long list of choices is read in the help's column
        std::string choices;
        for (const std::string& choice : option.choices) choices += (choices.empty() ? "" : ", ") + choice;
        left = "  --" + option.name + " NAME";
        help += ": " + choices;
      }
      out << left;
      if (left.size() + 2 > indent)
        out << "\n" << std::string(indent, ' ');
      else
        out << std::string(indent - left.size(), ' ');
      out << wrapped(help + " [" + default_text(option) + "]", indent, indent, width) << "\n";
    }
  }
  out << "\n  --help, --version\n\n"
      << wrapped(kNames, 0, 0, width) << "\n\n"
      << wrapped(std::string("Exit codes: ") + kExitCodes, 0, 0, width) << "\n";
  return out.str();
}

std::string man_page(const Table& table, const std::string& version) {
  std::string title = table.program;
  for (char& c : title)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  std::ostringstream out;
  out << ".TH " << troff(title) << " 1 \"\" \"qlora " << version << "\"\n.SH NAME\n"
      << troff(table.program) << " \\- " << troff(table.summary) << "\n.SH SYNOPSIS\n.B "
      << troff(table.program) << "\n"
      << troff(table.usage) << " [options]\n.SH DESCRIPTION\n"
      << troff(kNames) << "\n";
  for (const std::string& group : groups(table)) {
    out << ".SH " << troff(group) << "\n";
    for (const Option& option : table.options) {
      if (option.group != group) continue;
      out << ".TP\n.B " << troff(left_side(table, option)) << "\n"
          << troff(option.help + " [" + default_text(option) + "]") << "\n";
      if (option.aliases.empty()) continue;
      out << ".br\nAlso:";
      for (const Alias& alias : option.aliases) out << " " << troff("--" + alias.name);
      out << "\n";
    }
  }
  out << ".SH EXIT STATUS\n"
      << troff(kExitCodes) << "\n.SH EXAMPLE\n.nf\n"
      << troff(table.example) << "\n.fi\n";
  return out.str();
}

std::string bash_completion(const Table& table) {
  std::string function = "_" + with_underscores(table.program), names = "--help --version";
  std::ostringstream out;
  out << "# bash completion for " << table.program << "\n"
      << function << "() {\n"
      << "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n  case ${before//_/-} "
         "in\n";
  for (const Option& option : table.options) {
    if (table.operand == option.name) continue;
    names += " --" + option.name + (option.kind == Kind::toggle ? " --no-" + option.name : "");
    std::string choices;
    for (const std::string& choice : option.choices) choices += (choices.empty() ? "" : " ") + choice;
    if (option.kind == Kind::device) choices = "auto cpu cuda";
    if (!choices.empty())
      out << "    --" << option.name << ") COMPREPLY=($(compgen -W " << single_quoted(choices)
          << " -- \"$word\")); return ;;\n";
  }
  out << "  esac\n  if [[ $word == -* ]]; then\n    COMPREPLY=($(compgen -W " << single_quoted(names)
      << " -- \"$word\"))\n  else\n    COMPREPLY=($(compgen -f -- \"$word\"))\n  fi\n}\ncomplete -o "
         "filenames -F "
      << function << " " << table.program << "\n";
  return out.str();
}

}  // namespace qlora::tools
