#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/exec.h"
#include "model/adapter.h"
#include "model/decoder.h"
#include "model/weights.h"
#include "train/data/batches.h"
#include "train/moments.h"

namespace qlora {

enum class Checkpointing : uint8_t {
  automatic,
  all,
  none
};  // all: everything but block inputs is computed again

struct EngineOptions {
  Numerics numerics;
  int threads = 1;
  BatchMaxima train, eval;  // eval all zero: no evaluation
  float lora_dropout = 0;
  Checkpointing checkpointing = Checkpointing::automatic;
  OptimizerKind optimizer = OptimizerKind::adamw;
  Moments::Paging paging;               // of a paged optimizer
  std::optional<size_t> memory_budget;  // peak resident bytes, libraries included; none: what is free now
};

// What a run will hold at its peak, region by region, and why it fits.
struct EnginePlan {
  struct Row {
    std::string name;
    size_t bytes;
    std::string why;
  };
  std::vector<Row> rows;
  size_t total_bytes = 0, budget_bytes = 0, arena_bytes = 0;
  bool recompute = false;
  double flops_per_microbatch = 0;
};

// Adapter, gradients and moments in one arena with the passes that change them: everything of a step but
// data, rates and files. Planned by rehearsal when made, reserved by reserve(); nothing allocates afterwards.
class Engine {
 public:
  // Category::memory when the smallest plan is over the budget: the bytes missing and a smaller setting that
  // fits.
  Engine(std::shared_ptr<const Model> model, AdapterLayout layout, const EngineOptions& options);

  const EnginePlan& plan() const { return plan_; }
  const AdapterLayout& layout() const { return layout_; }
  const Model& model() const { return *model_; }
  // Reserves and touches the arena; parameters and moments are zero afterwards.
  void reserve();

  std::span<float> params() { return {params_.as<float>(), count()}; }
  std::span<float> grads() { return {grads_.as<float>(), count()}; }
  const Moments& moments() const { return moments_; }
  // As Moments hands them out and has them filled.
  void save_moments(const std::function<void(MomentPart, std::span<const std::byte>)>& write);
  void load_moments(const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill);

  void zero_grads();
  // Adds the gradients of grad_scale * (summed loss).
  LossSum train(const Batch& batch, const DropoutKey& dropout, float grad_scale);
  LossSum evaluate(const Batch& batch);
  // The norm of the gradients, before clipping.
  double grad_norm();
  void update(const AdamWHyper& hyper);
  // After reserve(): every span is filled with NaN bytes when it is handed out. For tests.
  void set_poison(bool on) { exec_->set_poison(on); }

 private:
  size_t count() const { return static_cast<size_t>(layout_.size()); }
  void rehearse();
  void choose_policy();
  size_t fixed_bytes() const;
  void describe();
  void allocate_state(Exec& e);
  void optimizer_pass(Exec& e, const AdamWHyper& hyper);
  [[noreturn]] void refuse() const;
  TokenBatch view(const Batch& batch);

  std::shared_ptr<const Model> model_;
  AdapterLayout layout_;
  EngineOptions options_;
  Decoder decoder_;
  std::optional<Decoder> eval_decoder_;
  std::vector<SavePolicy> policy_;
  EnginePlan plan_;
  Trace state_{"state"}, train_{"train"}, eval_{"evaluate"}, norm_{"norm"}, update_{"update"},
      save_{"save moments"}, load_{"load moments"};
  Arena arena_;
  std::unique_ptr<Exec> exec_;
  Buffer params_, grads_;
  Moments moments_;
  std::vector<int32_t> targets_;
};

}  // namespace qlora
