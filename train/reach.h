#pragma once
#include <cstdint>
#include <memory>

#include "train/engine.h"

namespace qlora {

// What a budget reaches, everything that can be recomputed being recomputed unless `options` stores: found by
// bisection over plans. Every row has `length` tokens, all with loss; there is no evaluation.
struct Reach {
  static constexpr int64_t kUnit = 64;
  // The longest sequence, a multiple of kUnit at most `most`, at options.batch_rows rows; 0: none.
  static int64_t longest_sequence(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
                                  const EngineOptions& options, int64_t most);
  // What that plan is, at another length.
  static EnginePlan smallest(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
                             EngineOptions options, int64_t rows, int64_t length);
  // The most rows of `length` tokens, at most `most`; 0: none.
  static int64_t largest_batch(const std::shared_ptr<const Model>& model, const AdapterLayout& layout,
                               const EngineOptions& options, int64_t length, int64_t most);
};

// The quantities of a batch of `rows` such rows.
BatchMaxima full_rows(int64_t rows, int64_t length);

}  // namespace qlora
