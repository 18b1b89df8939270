#pragma once
#include <functional>
#include <memory>

#include "memory/exec.h"
#include "model/decoder.h"
#include "train/data/batches.h"

namespace qlora {

// Forward passes over batches in memory of their own: what qlora-eval runs.
class Evaluator {
 public:
  // Plans and reserves for batches up to `largest`. Category::memory when there is no room. `adapter` must
  // outlive it.
  Evaluator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
            const BatchMaxima& largest, int threads);
  LossSum evaluate(const Batch& batch);
  // f(first row, logits fp32 [rows, vocab]) over every row of the batch, chunk by chunk.
  void for_logits(const Batch& batch, const std::function<void(int64_t, const ConstMat&)>& f);
  size_t arena_bytes() const { return arena_.bytes(); }

 private:
  TokenBatch view(const Batch& batch);
  Decoder decoder_;
  AdapterView adapter_;
  Trace loss_trace_{"evaluate"}, logits_trace_{"logits"};
  Arena arena_;
  std::unique_ptr<Exec> exec_;
  std::vector<int32_t> targets_;
};

}  // namespace qlora
