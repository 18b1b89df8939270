#include "train/reach.h"

namespace qlora {
namespace {

bool fits(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
          const EngineOptions& options, int64_t rows, int64_t length) {
  return Reach::smallest(model, layout, options, rows, length).fits;
}

// The most in [1, most] that holds; 0: none.
template <class F>
int64_t most_that(int64_t most, const F& holds) {
  if (most < 1 || !holds(1)) return 0;
  int64_t good = 1, bad = most + 1;
  for (int64_t n = 2; n < bad; n *= 2) (holds(n) ? good : bad) = n;
  while (bad - good > 1) {
    const int64_t middle = good + (bad - good) / 2;
    (holds(middle) ? good : bad) = middle;
  }
  return good;
}

}  // namespace

BatchMaxima full_rows(int64_t rows, int64_t length) {
  return {.tokens = rows * length,
          .documents = rows,
          .longest = length,
          .loss_rows = rows * std::max<int64_t>(1, length - 1)};
}

EnginePlan Reach::smallest(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
                           EngineOptions options, int64_t rows, int64_t length) {
  options.train = full_rows(rows, length);
  options.eval = {};
  options.batch_rows = rows;
  options.must_fit = false;
  options.smallest = true;
  if (options.checkpointing == Checkpointing::automatic) options.checkpointing = Checkpointing::all;
  return Engine(model, layout, options).plan();
}

int64_t Reach::longest_sequence(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
                                const EngineOptions& options, int64_t most) {
  return kUnit * most_that(most / kUnit, [&](int64_t n) {
           return fits(model, layout, options, options.batch_rows, n * kUnit);
         });
}

int64_t Reach::largest_batch(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
                             const EngineOptions& options, int64_t length, int64_t most) {
  return most_that(most, [&](int64_t n) { return fits(model, layout, options, n, length); });
}

}  // namespace qlora
