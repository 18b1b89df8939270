#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "train/checkpoint.h"
#include "train/data/batches.h"
#include "train/engine.h"
#include "train/metrics.h"
#include "train/schedule.h"
#include "train/tensorboard.h"

namespace qlora {

struct TrainerOptions {
  std::string output_dir;
  uint64_t seed = 42;
  float lora_dropout = 0;
  ScheduleOptions schedule;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  double max_grad_norm = 1;  // 0: no clipping
  int64_t logging_steps = 1, save_steps = 500, save_total_limit = 2;
  int64_t eval_steps = 0;  // 0: at each epoch's end
  int64_t patience = 0;    // evaluations without a lower loss after which the run ends; 0: never
  bool load_best = false;
  bool tensorboard = true;
};

// What happens in a run, for whoever watches it.
class TrainerEvents {
 public:
  virtual ~TrainerEvents() = default;
  virtual void stepped(const TrainMetrics& line, int64_t total_steps, double seconds_left) = 0;
  virtual void evaluated(const EvalMetrics& line) = 0;
  virtual void saved(const std::string& folder) = 0;
  // Asked after every step: true leaves a checkpoint and ends the run.
  virtual bool stop() = 0;
};

// How adapters go to and from folders; the tools know names, cards and tokenizers.
struct AdapterFiles {
  std::function<void(const std::string& folder)> write;
  std::function<void(const std::string& folder, std::span<float> params)> read;
};

// The loop: steps, rates, evaluations, metrics, checkpoints. A step is a function of (data, seed, its number)
// and the state before it, so a resumed run gives the bits of one that was never stopped.
class Trainer {
 public:
  // `eval` may be null. All must outlive the trainer.
  Trainer(Engine& engine, BatchPlan& data, BatchPlan* eval, const CheckpointStore& store,
          const AdapterFiles& files, const TrainerOptions& options, TrainerEvents& events);

  enum class End { done, stopped_early, interrupted };
  // From the state given (a loaded checkpoint, or step 0 with the engine's parameters set). After done and
  // stopped_early the engine holds the final adapter (the best one with load_best). Category::diverged when
  // loss or norm is no longer finite: nothing was updated, the last checkpoint stands.
  End run(const RunState& from);

  const Metrics& metrics() const { return metrics_->all(); }
  const RunState& state() const { return state_; }

 private:
  void pass(const Step& step);
  void step(int64_t number);
  void log(const Step& step, double norm, double rate);
  void evaluate(int64_t steps_done, double epoch);
  void save();
  void write_best();
  void finish_logs();
  bool last(int64_t number) const { return number + 1 == options_.schedule.total_steps; }

  Engine& engine_;
  BatchPlan& data_;
  BatchPlan* eval_;
  const CheckpointStore& store_;
  const AdapterFiles& files_;
  TrainerOptions options_;
  TrainerEvents& events_;
  Schedule schedule_;
  RunState state_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<TensorBoardWriter> board_;
  Step step_, eval_step_;
};

}  // namespace qlora
