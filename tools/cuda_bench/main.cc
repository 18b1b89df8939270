// qlora-bench-cuda: what a card does, part by part, each held against the roof measured in turns with it.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>

#include "memory/cuda/start.h"
#include "memory/file.h"
#include "tools/cuda_bench/parts.h"

namespace qlora::bench {
namespace {

constexpr char kUsage[] =
    "qlora-bench-cuda PART [options]: measures a part on a CUDA card\n"
    "qlora-bench-cuda tune --table FILE [options]: writes the table that QLORA_GEMM_TABLE reads\n"
    "qlora-bench-cuda list: the parts' names\n\n"
    "  --device N        the card [0]\n"
    "  --budget SECONDS  nothing is begun after it [300]\n"
    "  --json FILE       a JSON object a line is added there for each figure, at once\n"
    "  --config FILE     config.json of another model than the 8B-shaped Llama, for step and tune\n"
    "  --rows N --sequence N --accumulation N --rank N\n"
    "                    of step and tune [2, 2048, 4, 16]\n"
    "  --tiny            as small as it gets: tells that the program runs, and no speed\n\n"
    "Exit codes: 0 all was measured, 1 the time was up before, 2 usage, 4 the card has no room, 5 it "
    "fails.\n";

struct Arguments {
  std::string part, json, table, config;
  int64_t device = 0, budget = 300, rows = 0, sequence = 0, accumulation = 0, rank = 0;
  bool tiny = false;
};

int64_t number(const std::string& option, const std::string& text) {
  int64_t n = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || *end != 0 || n < 0 || n > 1 << 30)
    fail(Category::usage, option, " ", text, ": not a number from 0 on; see --help");
  return n;
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments a;
  const std::vector<std::pair<const char*, std::string*>> texts = {
      {"--json", &a.json}, {"--table", &a.table}, {"--config", &a.config}};
  const std::vector<std::pair<const char*, int64_t*>> numbers = {{"--device", &a.device},
                                                                 {"--budget", &a.budget},
                                                                 {"--rows", &a.rows},
                                                                 {"--sequence", &a.sequence},
                                                                 {"--accumulation", &a.accumulation},
                                                                 {"--rank", &a.rank}};
  const auto take = [&](const auto& list, const std::string& word) {
    for (const auto& [name, to] : list)
      if (word == name) return to;
    return decltype(list.front().second){};
  };
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& w = words[i];
    std::string* const text = take(texts, w);
    int64_t* const count = take(numbers, w);
    if (w == "--tiny") {
      a.tiny = true;
    } else if (text != nullptr || count != nullptr) {
      if (i + 1 == words.size()) fail(Category::usage, w, ": needs a value; see --help");
      ++i;
      if (text != nullptr) *text = words[i];
      if (count != nullptr) *count = number(w, words[i]);
    } else if (w.rfind("--", 0) == 0 || !a.part.empty()) {
      fail(Category::usage, w, ": not known; see --help");
    } else {
      a.part = w;
    }
  }
  return a;
}

Sizes sizes_of(const Arguments& a) {
  Sizes s = a.tiny ? tiny_sizes() : full_sizes();
  if (!a.config.empty()) {
    s.large.name = a.config;
    s.large.config = read_file(a.config, size_t{1} << 20);
  }
  if (a.rows > 0) s.large.rows = a.rows;
  if (a.sequence > 0) s.large.sequence = a.sequence;
  if (a.accumulation > 0) s.large.accumulation = a.accumulation;
  if (a.rank > 0) s.large.rank = static_cast<int>(a.rank);
  return s;
}

int run(const std::vector<std::string>& words) {
  const auto asked = [&](const char* w) { return std::find(words.begin(), words.end(), w) != words.end(); };
  if (words.empty() || asked("-h") || asked("--help")) {
    std::fputs(kUsage, stdout);
    for (const Part& p : parts()) std::printf("  %-9s %s\n", p.name, p.what);
    return words.empty() ? 2 : 0;
  }
  const Arguments a = parse(words);
  if (a.part == "list") {
    for (const Part& p : parts()) std::puts(p.name);
    return 0;
  }
  const auto part =
      std::find_if(parts().begin(), parts().end(), [&](const Part& p) { return a.part == p.name; });
  const bool tunes = a.part == "tune";
  if (!tunes && part == parts().end())
    fail(Category::usage, "'", a.part, "': no part of that name; see --help");
  if (tunes == a.table.empty())
    fail(Category::usage, tunes ? "tune: needs --table FILE" : "--table: belongs to tune", "; see --help");
  const int device = static_cast<int>(a.device);
  cuda::require_device(device);
  Report report(a.json);
  const cuda::Found card = cuda::find(device);
  report.say(cat(card.name, ", sm_", card.major, card.minor, ", CUDA ", cuda::version_text(card.runtime),
                 ", driver's ", cuda::version_text(card.driver)));
  Bench b{device, sizes_of(a), report, std::chrono::steady_clock::now() + std::chrono::seconds(a.budget)};
  if (tunes)
    tune(b, a.table);
  else
    part->run(b);
  return b.cut ? 1 : 0;
}

}  // namespace
}  // namespace qlora::bench

int main(int argc, char** argv) {
  try {
    return qlora::bench::run({argv + std::min(argc, 1), argv + argc});
  } catch (const qlora::Error& e) {
    std::fprintf(stderr, "qlora-bench-cuda: %s\n", e.what());
    return e.exit_code();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "qlora-bench-cuda: internal error: %s; please report it with the command\n",
                 e.what());
    return 1;
  }
}
