// What is said of a run that does not fit: the bytes missing, and settings that fit.
#include <algorithm>

#include "train/engine.h"

namespace qlora {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
// Two processes of one program are never quite of one size: what a remedy must leave over.
constexpr size_t kSlack = 4 * kMiB;

// The most in [1, most) that holds; 0: none.
template <class F>
int64_t most_below(int64_t most, const F& holds) {
  int64_t good = 0;
  for (int64_t bad = most; bad - good > 1;) {
    const int64_t middle = good + (bad - good) / 2;
    (holds(middle) ? good : bad) = middle;
  }
  return good;
}

}  // namespace

void Engine::refuse() const {
  const auto mib = [](size_t bytes) { return cat((bytes + kMiB - 1) / kMiB, " MiB"); };
  const bool host = plan_.device_bytes <= plan_.budget_bytes;
  const size_t needed = host ? plan_.host_bytes : plan_.device_bytes,
               budget = host ? plan_.host_budget_bytes.value_or(0) : plan_.budget_bytes;
  fail(Category::memory, "this run needs ", mib(needed), " of ", host ? "host " : "", "memory",
       on_cuda() && !host ? " on the CUDA device" : "", " and may take ", mib(budget), ": ",
       mib(needed - budget), " are missing; ", remedy());
}

// Settings that fit, each seen to by a plan of its own.
std::string Engine::remedy() const {
  const bool host = plan_.device_bytes <= plan_.budget_bytes;
  const size_t needed = host ? plan_.host_bytes : plan_.device_bytes;
  std::string text =
      cat(host ? "--host-memory " : "--memory ", (needed + kSlack + kMiB - 1) / kMiB, "MiB would do");
  EngineOptions smaller = options_;
  smaller.must_fit = false;
  smaller.process_bytes = plan_.process_bytes;
  smaller.memory_budget = plan_.budget_bytes - std::min(plan_.budget_bytes, kSlack);
  const auto fits = [&](int64_t rows, int64_t length) {
    for (BatchMaxima* m : {&smaller.train, &smaller.eval}) {
      const BatchMaxima& full = m == &smaller.train ? options_.train : options_.eval;
      const int64_t row = (full.tokens + options_.batch_rows - 1) / options_.batch_rows;
      m->longest = std::min(full.longest, length);
      m->tokens = std::min(full.tokens, rows * std::max(std::min(row, length), m->longest));
      m->documents = full.documents;
      m->loss_rows = std::min(full.loss_rows, m->tokens);
    }
    return Engine(model_, layout_, smaller).plan().fits;
  };
  if (options_.checkpointing == Checkpointing::none) {
    smaller.checkpointing = Checkpointing::all;
    if (fits(options_.batch_rows, options_.train.tokens)) return text + ", or --gradient-checkpointing auto";
    smaller.checkpointing = Checkpointing::none;
  } else {
    smaller.checkpointing = Checkpointing::all;
  }
  const int64_t rows =
      most_below(options_.batch_rows, [&](int64_t n) { return fits(n, options_.train.tokens); });
  if (rows > 0) return text + cat(", or --per-device-train-batch-size ", rows);
  constexpr int64_t kUnit = 64;
  const int64_t length = kUnit * most_below((options_.train.longest + kUnit - 1) / kUnit,
                                            [&](int64_t n) { return fits(1, n * kUnit); });
  if (length == 0) return text;
  return text + cat(", or ", options_.batch_rows > 1 ? "--per-device-train-batch-size 1 " : "",
                    "--max-seq-length ", length);
}

}  // namespace qlora
