#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/io/module_match.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <set>

#include "memory/error.h"
#include "model/io/json.h"

namespace qlora {
namespace {

constexpr size_t kMaxPattern = 4096;
constexpr uint32_t kMatchSteps = 200'000;
constexpr uint32_t kHeapKiB = 4096;

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

std::string known_names(const ModelDesc& desc) {
  std::set<std::string> names;
  for (const ModuleRef& m : all_linears(desc)) names.insert(last_part(m.name));
  std::string text;
  for (const std::string& n : names) text += (text.empty() ? "" : ", ") + n;
  return text + " (in full: " + all_linears(desc).front().name + ", ...)";
}

}  // namespace

ModuleRegex::ModuleRegex(const std::string& pattern, const std::string& where, Category on_error)
    : pattern_(pattern), where_(where), on_error_(on_error) {
  if (pattern.size() > kMaxPattern)
    fail(on_error, where, ": a regular expression of ", pattern.size(), " characters; ", kMaxPattern,
         " are the most");
  int error = 0;
  size_t offset = 0;
  code_ = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(),
                          PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &offset, nullptr);
  if (code_ != nullptr) return;
  if (error == PCRE2_ERROR_HEAP_FAILED) throw std::bad_alloc();
  std::array<PCRE2_UCHAR8, 256> text{};
  pcre2_get_error_message_8(error, text.data(), text.size());
  fail(on_error, where, ": the regular expression ", shown_text(pattern), " is broken at character ", offset,
       ": ", reinterpret_cast<const char*>(text.data()), "; correct it");
}

ModuleRegex::~ModuleRegex() { pcre2_code_free_8(static_cast<pcre2_code_8*>(code_)); }

bool ModuleRegex::full_match(const std::string& name) const {
  auto* code = static_cast<pcre2_code_8*>(code_);
  const std::unique_ptr<pcre2_match_context_8, decltype(&pcre2_match_context_free_8)> limits(
      pcre2_match_context_create_8(nullptr), pcre2_match_context_free_8);
  const std::unique_ptr<pcre2_match_data_8, decltype(&pcre2_match_data_free_8)> data(
      pcre2_match_data_create_from_pattern_8(code, nullptr), pcre2_match_data_free_8);
  if (!limits || !data) throw std::bad_alloc();
  pcre2_set_match_limit_8(limits.get(), kMatchSteps);
  pcre2_set_depth_limit_8(limits.get(), kMatchSteps);
  pcre2_set_heap_limit_8(limits.get(), kHeapKiB);
  const int result = pcre2_match_8(code, reinterpret_cast<PCRE2_SPTR8>(name.data()), name.size(), 0, 0,
                                   data.get(), limits.get());
  if (result == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
  if (result < 0 && result != PCRE2_ERROR_NOMATCH)
    fail(on_error_, where_, ": the regular expression ", shown_text(pattern_), " takes too many steps on ",
         name, "; write it simpler");
  return result >= 0;
}

std::vector<ModuleRef> all_linears(const ModelDesc& desc) {
  std::vector<ModuleRef> out;
  for (int b = 0; b < static_cast<int>(desc.blocks.size()); ++b)
    for (int k = 0; k < kLinears; ++k)
      out.push_back({b, static_cast<LinearKind>(k), linear_name(b, static_cast<LinearKind>(k))});
  return out;
}

bool matches_suffix(const std::string& name, const std::string& suffix) {
  if (name == suffix) return true;
  return name.size() > suffix.size() && name[name.size() - suffix.size() - 1] == '.' &&
         name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

std::vector<ModuleRef> matching_linears(const ModuleTargets& targets, const ModelDesc& desc,
                                        const std::string& where) {
  std::vector<ModuleRef> out = all_linears(desc);
  if (!targets.names.empty()) {
    std::erase_if(out, [&](const ModuleRef& m) {
      return std::none_of(targets.names.begin(), targets.names.end(),
                          [&](const std::string& n) { return matches_suffix(m.name, n); });
    });
    return out;
  }
  const ModuleRegex regex(targets.regex, where, Category::input);
  std::erase_if(out, [&](const ModuleRef& m) { return !regex.full_match(m.name); });
  return out;
}

ModuleTargets ModuleTargets::parse(const std::string& option, const ModelDesc& desc) {
  ModuleTargets out;
  if (option == "all-linear") {
    std::set<std::string> names;
    for (const ModuleRef& m : all_linears(desc)) names.insert(last_part(m.name));
    out.names.assign(names.begin(), names.end());
    return out;
  }
  const auto nothing = [&](const std::string& entry) {
    fail(Category::usage, "--target-modules: ", shown_text(entry),
         " matches no linear of the model; there are ", known_names(desc));
  };
  if (option.find_first_of("\\()[]{}*+?|^$") != std::string::npos) {
    out.regex = option;
    const ModuleRegex regex(option, "--target-modules", Category::usage);
    const std::vector<ModuleRef> all = all_linears(desc);
    if (std::none_of(all.begin(), all.end(), [&](const ModuleRef& m) { return regex.full_match(m.name); }))
      nothing(option);
    return out;
  }
  for (size_t at = 0; at <= option.size();) {
    const size_t comma = std::min(option.find(',', at), option.size());
    std::string entry = option.substr(at, comma - at);
    entry.erase(0, entry.find_first_not_of(' '));
    entry.erase(entry.find_last_not_of(' ') + 1);
    at = comma + 1;
    ModuleTargets one;
    one.names = {entry};
    if (entry.empty() || matching_linears(one, desc, "--target-modules").empty()) nothing(entry);
    if (std::find(out.names.begin(), out.names.end(), entry) == out.names.end()) out.names.push_back(entry);
  }
  return out;
}

}  // namespace qlora
