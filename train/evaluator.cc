#include "train/evaluator.h"

#include <algorithm>

#include "train/largest_batch.h"

namespace qlora {

Evaluator::Evaluator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
                     const BatchMaxima& largest, int threads)
    : decoder_(std::move(model), numerics, limits_of(largest)), adapter_(adapter) {
  {
    Exec e = Exec::rehearsal(threads);
    const LargestBatch batch(largest);
    {
      Phase phase(e, loss_trace_);
      decoder_.evaluate(e, batch.view(), adapter_);
    }
    Phase phase(e, logits_trace_);
    decoder_.for_logits(e, batch.view(), adapter_, {});
  }
  loss_trace_.lay_out();
  logits_trace_.lay_out();
  arena_ = Arena(std::max(loss_trace_.bytes, logits_trace_.bytes));
  exec_ = std::make_unique<Exec>(Device{DeviceKind::cpu, 0}, threads, arena_.data());
}

TokenBatch Evaluator::view(const Batch& b) { return token_batch(b, targets_); }

LossSum Evaluator::evaluate(const Batch& batch) {
  Phase phase(*exec_, loss_trace_);
  return decoder_.evaluate(*exec_, view(batch), adapter_);
}

void Evaluator::for_logits(const Batch& batch, const std::function<void(int64_t, const ConstMat&)>& f) {
  Phase phase(*exec_, logits_trace_);
  decoder_.for_logits(*exec_, view(batch), adapter_, f);
}

}  // namespace qlora
