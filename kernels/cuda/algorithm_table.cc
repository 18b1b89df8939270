#include "kernels/cuda/algorithm_table.h"

#include <charconv>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

#include "memory/error.h"
#include "memory/sha256.h"

namespace qlora::cuda {
namespace {

constexpr size_t kDigits = 16;  // of a word

std::string_view trimmed(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t' || s.front() == '\r')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t' || s.back() == '\r')) s.remove_suffix(1);
  return s;
}

std::vector<std::string_view> split(std::string_view line) {
  std::vector<std::string_view> out;
  while (true) {
    const size_t bar = line.find('|');
    out.push_back(trimmed(line.substr(0, bar)));
    if (bar == std::string_view::npos) return out;
    line.remove_prefix(bar + 1);
  }
}

bool read_words(std::string_view text, Algorithm& a) {
  for (uint64_t& word : a) {
    text = trimmed(text);
    if (text.size() < kDigits) return false;
    const auto [end, error] = std::from_chars(text.data(), text.data() + kDigits, word, 16);
    if (error != std::errc() || end != text.data() + kDigits) return false;
    text.remove_prefix(kDigits);
    if (!text.empty() && text.front() != ' ') return false;
  }
  return trimmed(text).empty();
}

std::string key_of(std::string_view gpu, std::string_view library, std::string_view product) {
  return cat(gpu, " | ", library, " | ", product);
}

std::string words_of(const Algorithm& a) {
  std::string out;
  for (const uint64_t word : a) {
    if (!out.empty()) out += ' ';
    for (int shift = 60; shift >= 0; shift -= 4) out += "0123456789abcdef"[word >> shift & 15];
  }
  return out;
}

}  // namespace

AlgorithmTable AlgorithmTable::parse(const std::string& text, const std::string& path) {
  AlgorithmTable table;
  std::istringstream in(text);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    const std::string_view said = trimmed(std::string_view(line).substr(0, line.find('#')));
    if (said.empty()) continue;
    const std::vector<std::string_view> parts = split(said);
    Algorithm a{};
    if (parts.size() != 4 || parts[0].empty() || parts[1].empty() || parts[2].empty() ||
        !read_words(parts[3], a))
      fail(Category::input, path, ":", number,
           ": no line of a table of algorithms (GPU | library | product | eight numbers of 16 digits); make "
           "the table "
           "again or correct the line");
    if (!table.lines_.emplace(key_of(parts[0], parts[1], parts[2]), a).second)
      fail(Category::input, path, ":", number, ": the product is named twice; remove one of the lines");
  }
  return table;
}

AlgorithmTable AlgorithmTable::load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf()))
    fail(Category::input, path, ": cannot be read as a table of algorithms; name another file or none");
  return parse(text.str(), path);
}

const Algorithm* AlgorithmTable::find(const std::string& gpu, const std::string& library,
                                      const std::string& product) const {
  const auto at = lines_.find(key_of(gpu, library, product));
  return at == lines_.end() ? nullptr : &at->second;
}

void AlgorithmTable::set(const std::string& gpu, const std::string& library, const std::string& product,
                         const Algorithm& a) {
  lines_[key_of(gpu, library, product)] = a;
}

std::string AlgorithmTable::text() const {
  std::string out;
  for (const auto& [key, a] : lines_) out += cat(key, " | ", words_of(a), "\n");
  return out;
}

std::string AlgorithmTable::hash() const { return sha256_hex(text()); }

std::string AlgorithmTable::line(const std::string& gpu, const std::string& library,
                                 const std::string& product, const Algorithm& a) {
  return cat(key_of(gpu, library, product), " | ", words_of(a));
}

}  // namespace qlora::cuda
