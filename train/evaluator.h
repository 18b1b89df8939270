#pragma once
#include <functional>
#include <memory>

#include "model/decoder.h"
#include "model/run_device.h"
#include "train/batch_slots.h"
#include "train/data/batches.h"

namespace qlora {

// Forward passes over batches in memory of their own: what qlora-eval runs.
class Evaluator {
 public:
  // Plans and reserves for batches up to `largest`. Category::memory when there is no room. `adapter` must
  // outlive it.
  Evaluator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
            const BatchMaxima& largest, const RunDevice& on);
  LossSum evaluate(const Batch& batch);
  // f(first row, logits fp32 [rows, vocab], the host's) over every row of the batch, chunk by chunk.
  void for_logits(const Batch& batch, const std::function<void(int64_t, const ConstMat&)>& f);
  // Of the device that computes, besides the model's weights.
  size_t bytes() const { return memory_.bytes() + decoder_.table_bytes(); }

 private:
  void allocate_state(Exec& e);
  void forget_state();
  TokenBatch view(const Batch& batch);
  RunDevice on_;
  Decoder decoder_;
  BatchMaxima largest_;
  Trace state_{"state"}, loss_trace_{"evaluate"}, logits_trace_{"logits"};
  RunMemory memory_;
  std::unique_ptr<Exec> exec_;
  // From here on with spans of the Exec's, which must outlive them.
  RunAdapter adapter_;
  BatchSlots slots_;  // on a card
  std::vector<int32_t> targets_;
};

}  // namespace qlora
