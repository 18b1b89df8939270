#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "memory/file.h"

namespace qlora {
namespace fs = std::filesystem;
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Trainer::Trainer(Engine& engine, BatchPlan& data, BatchPlan* eval, const CheckpointStore& store,
                 const AdapterFiles& files, const TrainerOptions& options, TrainerEvents& events)
    : engine_(engine),
      data_(data),
      eval_(eval),
      store_(store),
      files_(files),
      options_(options),
      events_(events),
      schedule_(options.schedule) {}

void Trainer::pass(const Step& s) {
  const DropoutKey dropout{options_.seed, static_cast<uint64_t>(s.number), 0, options_.lora_dropout};
  // Normalised by the unmasked tokens of the whole step: four batches of one are one batch of four.
  const float scale = static_cast<float>(1.0 / static_cast<double>(s.loss_tokens));
  engine_.zero_grads();
  for (const Batch& b : s.microbatches) engine_.start(b, dropout, scale);
}

void Trainer::step(int64_t number) {
  const double began = now();
  data_.step(number, step_);
  pass(step_);
  // Waits for a device that computes beside the host: the one time in a step.
  const double norm = engine_.grad_norm(), rate = schedule_.rate(number);
  const LossSum sum = engine_.losses();
  if (!std::isfinite(sum.loss) || !std::isfinite(norm))
    fail(Category::diverged, options_.output_dir, ": step ", number + 1, ": loss ",
         sum.loss / static_cast<double>(sum.tokens), ", gradient norm ", norm,
         "; nothing was updated and the last checkpoint stands: lower --learning-rate");
  AdamWHyper h;
  h.lr = rate;
  h.beta1 = options_.beta1;
  h.beta2 = options_.beta2;
  h.epsilon = options_.epsilon;
  h.weight_decay = options_.weight_decay;
  h.step = number + 1;
  if (options_.max_grad_norm > 0)
    h.grad_scale = static_cast<float>(std::min(1.0, options_.max_grad_norm / (norm + 1e-6)));
  engine_.update(h);

  const double took = now() - began;
  state_.step = number + 1;
  state_.tokens += step_.tokens;
  state_.line_tokens += step_.tokens;
  state_.loss_sum += sum.loss;
  state_.loss_tokens += sum.tokens;
  state_.seconds += took;
  state_.line_seconds += took;
  if (state_.step % options_.logging_steps == 0 || last(number)) log(step_, norm, rate);
}

void Trainer::log(const Step& s, double norm, double rate) {
  TrainMetrics m;
  m.step = state_.step;
  m.epoch = s.epoch;
  m.loss = state_.loss_sum / static_cast<double>(state_.loss_tokens);
  m.grad_norm = norm;
  m.learning_rate = rate;
  m.tokens = state_.tokens;
  m.seconds = state_.seconds;
  m.tokens_per_second = static_cast<double>(state_.line_tokens) / state_.line_seconds;
  m.memory_bytes = engine_.peak_bytes();
  metrics_->add(m);
  if (board_) {
    board_->scalar("train/loss", m.step, m.loss);
    board_->scalar("train/grad_norm", m.step, m.grad_norm);
    board_->scalar("train/learning_rate", m.step, m.learning_rate);
    board_->scalar("train/tokens_per_second", m.step, m.tokens_per_second);
    board_->scalar("train/epoch", m.step, m.epoch);
  }
  const double left =
      static_cast<double>(options_.schedule.total_steps - m.step) * m.seconds / static_cast<double>(m.step);
  events_.stepped(m, options_.schedule.total_steps, left);
  state_.loss_sum = 0;
  state_.loss_tokens = state_.line_tokens = 0;
  state_.line_seconds = 0;
}

void Trainer::evaluate(int64_t steps_done, double epoch) {
  const double began = now();
  LossSum sum;
  for (int64_t i = 0; i < eval_->total_steps(); ++i) {
    eval_->step(i, eval_step_);
    for (const Batch& b : eval_step_.microbatches) sum += engine_.evaluate(b);
  }
  EvalMetrics m;
  m.step = steps_done;
  m.epoch = epoch;
  m.eval_loss = sum.loss / static_cast<double>(sum.tokens);
  m.eval_accuracy = static_cast<double>(sum.hits) / static_cast<double>(sum.tokens);
  m.eval_tokens = sum.tokens;
  state_.seconds += now() - began;
  if (!std::isfinite(m.eval_loss))
    fail(Category::diverged, options_.output_dir, ": step ", steps_done, ": evaluation loss ", m.eval_loss,
         "; the last checkpoint stands: lower --learning-rate");
  metrics_->add(m);
  if (board_) {
    board_->scalar("eval/loss", m.step, m.eval_loss);
    board_->scalar("eval/accuracy", m.step, m.eval_accuracy);
  }
  events_.evaluated(m);
  if (!state_.best_loss || m.eval_loss < *state_.best_loss) {
    state_.best_loss = m.eval_loss;
    state_.best_step = steps_done;
    state_.evals_without_gain = 0;
    write_best();
  } else {
    ++state_.evals_without_gain;
  }
}

void Trainer::write_best() {
  const std::string best = options_.output_dir + "/best", partial = options_.output_dir + "/.best.partial",
                    old = options_.output_dir + "/.best.old";
  try {
    fs::remove_all(partial);
    fs::create_directory(partial);
    files_.write(partial);
    sync_folder(partial);
    fs::remove_all(old);
    if (fs::exists(best)) fs::rename(best, old);
    fs::rename(partial, best);
    fs::remove_all(old);
  } catch (const fs::filesystem_error& e) {
    fail_by_system(best, e.code());
  }
}

void Trainer::save() {
  const std::span<const float> params = engine_.params();
  if (!std::all_of(params.begin(), params.end(), [](float p) { return std::isfinite(p); }))
    fail(Category::diverged, options_.output_dir, ": step ", state_.step,
         ": the adapter is no longer finite; the last checkpoint stands: lower --learning-rate");
  store_.save(state_, engine_);
  store_.prune(options_.save_total_limit, state_.step);
  events_.saved(options_.output_dir + "/checkpoint-" + std::to_string(state_.step));
}

void Trainer::finish_logs() {
  metrics_->finish();
  if (board_) board_->finish();
}

Trainer::End Trainer::run(const RunState& from) {
  state_ = from;
  const std::optional<int64_t> resumed = from.step > 0 ? std::optional(from.step) : std::nullopt;
  metrics_ = std::make_unique<MetricsWriter>(options_.output_dir + "/metrics.jsonl", resumed);
  if (options_.tensorboard)
    board_ = std::make_unique<TensorBoardWriter>(options_.output_dir + "/runs", resumed);
  if (eval_ != nullptr && state_.step == 0) evaluate(0, 0);

  const int64_t total = options_.schedule.total_steps;
  state_.total_steps = total;
  while (state_.step < total && !state_.stopped_early) {
    const int64_t number = state_.step;
    step(number);
    const bool epoch_end = data_.ends_epoch(number);
    const bool eval_due = options_.eval_steps > 0 ? state_.step % options_.eval_steps == 0 : epoch_end;
    if (eval_ != nullptr && (eval_due || last(number))) {
      evaluate(state_.step, step_.epoch);
      state_.stopped_early = options_.patience > 0 && state_.evals_without_gain >= options_.patience;
    }
    const bool stop = events_.stop();
    if (stop || state_.stopped_early || epoch_end || last(number) ||
        (options_.save_steps > 0 && state_.step % options_.save_steps == 0))
      save();
    if (stop && state_.step < total) {
      finish_logs();
      return End::interrupted;
    }
  }
  finish_logs();
  if (options_.load_best && state_.best_loss)
    engine_.set_params([&](std::span<float> p) { files_.read(options_.output_dir + "/best", p); });
  return state_.stopped_early ? End::stopped_early : End::done;
}

}  // namespace qlora
