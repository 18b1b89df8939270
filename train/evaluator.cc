#include "train/evaluator.h"

#include "train/largest_batch.h"

namespace qlora {

Evaluator::Evaluator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
                     const BatchMaxima& largest, const RunDevice& on)
    : on_(on),
      decoder_(std::move(model), numerics, limits_of(largest)),
      largest_(largest),
      adapter_(adapter) {
  {
    Exec e = Exec::rehearsal(on.threads, on.device);
    // State lives on: what is freed here, whatever happens, is only the rehearsal's handle on it.
    const struct Forgets {
      Evaluator& of;
      ~Forgets() { of.forget_state(); }
    } forgets{*this};
    const LargestBatch batch(largest);
    {
      Phase phase(e, state_);
      allocate_state(e);
    }
    {
      Phase phase(e, loss_trace_);
      decoder_.evaluate(e, batch.view(), adapter_.view());
    }
    {
      Phase phase(e, logits_trace_);
      decoder_.for_logits(e, batch.view(), adapter_.view(), {});
    }
  }
  memory_.plan(state_, {&loss_trace_, &logits_trace_});
  exec_ = memory_.reserve(on);
  if (on.on_card()) decoder_.set_device(*on.weights, exec_->stream());
  Phase phase(*exec_, state_);
  allocate_state(*exec_);
}

void Evaluator::allocate_state(Exec& e) {
  adapter_.allocate(e);
  if (e.on_cuda()) slots_.allocate(e, largest_);
}

void Evaluator::forget_state() {
  adapter_.forget();
  slots_.forget();
}

TokenBatch Evaluator::view(const Batch& b) {
  return exec_->on_cuda() ? slots_.put(b) : token_batch(b, targets_);
}

LossSum Evaluator::evaluate(const Batch& batch) {
  Phase phase(*exec_, loss_trace_);
  const LossSum sum = decoder_.evaluate(*exec_, view(batch), adapter_.view());
  if (!exec_->on_cuda()) return sum;
  slots_.sent();
  return slots_.take();
}

void Evaluator::for_logits(const Batch& batch, const std::function<void(int64_t, const ConstMat&)>& f) {
  Phase phase(*exec_, logits_trace_);
  decoder_.for_logits(*exec_, view(batch), adapter_.view(), f);
}

}  // namespace qlora
