#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/exec.h"
#include "memory/plan.h"
#include "model/adapter.h"
#include "model/decoder.h"
#include "model/weights.h"
#include "train/batch_slots.h"
#include "train/data/batches.h"
#include "train/moments.h"

namespace qlora {

// all: everything but block inputs is computed again; none: nothing is; automatic: what the budget asks for.
enum class Checkpointing : uint8_t { automatic, all, none };

// What a process holds on a CUDA device besides weights and arena: context and modules. Stated, not measured:
// what a run on a card finds there replaces it.
inline constexpr size_t kCudaContextBytes = size_t{384} << 20;

struct EngineOptions {
  Device device;  // the CPU, or a CUDA device, which a plan does not need
  Numerics numerics;
  int threads = 1;
  BatchMaxima train, eval;  // eval all zero: no evaluation
  float lora_dropout = 0;
  Checkpointing checkpointing = Checkpointing::automatic;
  OptimizerKind optimizer = OptimizerKind::adamw;
  Moments::Paging paging;            // of a paged optimizer
  bool always_page_weights = false;  // even where memory has room
  bool always_page_inputs = false;
  PagedWeights::Through pages_through;  // of weights and inputs
  // On the device: peak resident bytes, libraries included; on a CUDA device all that the process holds
  // there. None: what is free now.
  std::optional<size_t> memory_budget;
  // Beside a CUDA device: the process' bytes in host memory. None: whatever the run needs.
  std::optional<size_t> host_budget;
  size_t context_bytes = kCudaContextBytes;
  OpRates rates;
  std::vector<SavePolicy> pinned;  // a block each: taken as they are; empty: as `checkpointing` says
  int64_t accumulation = 1;        // microbatches of a step: they are laid out in host memory together
  int64_t batch_rows = 1;          // of a microbatch: what a remedy may lower
  int64_t log_lines = 0;           // that the whole run adds to metrics.jsonl
  // What a process takes besides the run; none: this one, measured when the plan is made.
  std::optional<size_t> process_bytes;
  bool must_fit = true;   // false: a plan over the budget is no error
  bool smallest = false;  // everything leaves memory that may: whether a run fits, not how
};

// What a run will hold at its peak, region by region, and why it fits.
struct EnginePlan {
  // Names have parts: "activations/x0/layer 3". The bytes of all add up to total_bytes.
  std::vector<PlanRegion> regions;
  size_t total_bytes = 0, budget_bytes = 0;
  // What counts against the budget (on a CPU everything), and beside a CUDA device against the host's.
  size_t device_bytes = 0, host_bytes = 0;
  std::optional<size_t> host_budget_bytes;
  size_t process_bytes = 0;
  size_t arena_bytes = 0, live_bytes = 0;  // of the arena: what no packing can go below
  size_t host_arena_bytes = 0;             // pinned memory beside a CUDA device
  std::vector<SavePolicy> policy;          // a block each
  bool weights_paged = false;              // frozen weights stay in the model's files
  int inputs_paged = 0;                    // blocks whose inputs leave memory between the passes
  bool decodes_ahead = false;              // a CUDA device decodes weights beside the products
  bool fits = false;
  double flops_per_microbatch = 0;
  double seconds = 0;        // of a microbatch, by OpRates
  double extra_seconds = 0;  // of those, for what is computed again
  size_t saved_bytes = 0;    // of the arena, against storing everything
  // What pages take to and fro: weights and saved fields in a microbatch, moments in a step's update.
  PageTraffic microbatch_pages, update_pages;
  // "stored", "recomputed", or in how many layers what is; and what is paged.
  std::string choices() const;
};

// What pages have cost the training passes so far.
struct PagingCost {
  PageTraffic weights, saved;
  double seconds = 0;   // of the passes, stalls included
  PageTraffic moments;  // of the updates
};

// Adapter, gradients and moments in one arena with the passes that change them: everything of a step but
// data, rates and files. Planned by rehearsal when made, reserved by reserve(); nothing allocates afterwards.
class Engine {
 public:
  // A model that is only outlined will do; it must be filled before the first pass. Category::memory when the
  // smallest plan is over the budget: the bytes missing and a smaller setting that fits.
  Engine(std::shared_ptr<const Model> model, AdapterLayout layout, const EngineOptions& options);

  const EnginePlan& plan() const { return plan_; }
  // What the process has held at most where it trains: resident memory, or of a CUDA device.
  size_t peak_bytes() const;
  // A microbatch as planned, in order.
  const Trace& training_trace() const { return train_; }
  const AdapterLayout& layout() const { return layout_; }
  const Model& model() const { return *model_; }
  // After reserve(), on a CUDA device: the frozen weights there, for what runs once this has gone. Else null.
  const std::shared_ptr<const DeviceWeights>& card_weights() const { return card_weights_; }
  // Reserves and touches the arena; parameters and moments are zero afterwards. On a CUDA device: its arena
  // and that in pinned memory, and the frozen weights go there. Category::memory, with the bytes, when there
  // is no room.
  void reserve();

  // As the passes before this call leave them. On a CUDA device a copy, which stands until the next call.
  std::span<const float> params();
  std::span<const float> grads();  // for tests: there the copy is not in the plan
  // fill(all parameters, to be written).
  void set_params(const std::function<void(std::span<float>)>& fill);
  const Moments& moments() const { return moments_; }
  const PagedWeights* paged_weights() const { return pages_.get(); }  // null: they are resident
  const SavedPages::Pagers& saved_pages() const { return saved_pages_; }
  const PagingCost& paging_cost() const { return paging_cost_; }
  // As Moments hands them out and has them filled.
  void save_moments(const std::function<void(MomentPart, std::span<const std::byte>)>& write);
  void load_moments(const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill);

  void zero_grads();
  // Adds the gradients of grad_scale * (summed loss). A CUDA device is only told to, and the batch is not
  // needed any more when this returns.
  void start(const Batch& batch, const DropoutKey& dropout, float grad_scale);
  // The loss of what was started since the last call: waits for it.
  LossSum losses();
  // Both.
  LossSum train(const Batch& batch, const DropoutKey& dropout, float grad_scale);
  LossSum evaluate(const Batch& batch);
  // The norm of the gradients, before clipping.
  double grad_norm();
  void update(const AdamWHyper& hyper);
  // After reserve(): every span is filled with NaN bytes when it is handed out. For tests.
  void set_poison(bool on) { exec_->set_poison(on); }

 private:
  size_t count() const { return static_cast<size_t>(layout_.size()); }
  bool on_cuda() const { return options_.device.kind == DeviceKind::cuda; }
  // In engine_plan.cc: phases rehearsed, and what there is besides their memory.
  struct Held {
    size_t device = 0, host = 0;  // by the budget that it counts against
  };
  void rehearse_all_but_training();
  void rehearse_training();
  void lay_out();
  size_t measured_process() const;
  Place place_of(const Model::Part& part) const;
  size_t base_bytes(Place where) const;
  size_t host_copy_bytes() const;
  Held fixed_bytes() const;
  size_t table_bytes() const;
  size_t staging_bytes() const;
  size_t paged_bytes() const;
  bool within(Held held) const;
  void page_weights(bool on);
  void set_policy(const std::vector<SavePolicy>& policy);
  void connect_pages();
  // In engine_choice.cc: what is stored, computed again or paged.
  struct Choice {
    size_t block;
    Keep SavePolicy::*field;
    Keep to;
  };
  bool attempt(const std::vector<SavePolicy>& policy);
  bool attempt_uniform(Keep keep);
  std::vector<SavePolicy> uniform(Keep keep) const;
  // What rehearsals of blocks that are all alike say of each.
  struct Costs {
    std::vector<double> seconds;                      // of a block, everything stored
    std::vector<size_t> bytes;                        // that it then leaves for its backward pass
    std::array<std::vector<double>, kChoices> again;  // seconds more, where a field is computed again
    std::array<std::vector<size_t>, kChoices> freed;
  };
  Costs costs();
  std::vector<size_t> that_hide(const Costs& costs) const;
  std::vector<Choice> choices(std::span<const size_t> paged) const;
  std::vector<Decision> decisions(const Costs& costs, const std::vector<Choice>& choices) const;
  bool choose_among(const std::vector<SavePolicy>& whole, const Costs& costs,
                    const std::vector<Choice>& choices);
  void choose_least();
  void choose_logits();
  void choose_saved();
  void choose_decode();
  void choose_policy();
  // In engine_describe.cc.
  void describe();
  void describe_base();
  void describe_arena();
  void describe_pages();
  [[noreturn]] void refuse() const;
  std::string remedy() const;
  std::span<float> device_params() { return {params_.as<float>(), count()}; }
  std::span<float> device_grads() { return {grads_.as<float>(), count()}; }
  void allocate_state(Exec& e);
  void forget_state();
  void reserve_on_card();
  void optimizer_pass(Exec& e, const AdamWHyper& hyper);
  TokenBatch view(const Batch& batch);
  void passed(const LossSum& sum);

  std::shared_ptr<const Model> model_;
  AdapterLayout layout_;
  EngineOptions options_;
  Decoder decoder_;
  std::optional<Decoder> eval_decoder_;
  std::array<size_t, kSavedGroups.size()> page_bytes_{};  // a block's, of each group
  PagingCost paging_cost_;
  EnginePlan plan_;
  size_t mapped_around_ = 0;  // of the model's files, beside what is used in place
  Trace state_{"state"}, train_{"train"}, eval_{"evaluate"}, norm_{"norm"}, update_{"update"},
      save_{"save moments"}, load_{"load moments"};
  Arena arena_;
  cuda::Memory card_arena_, pinned_arena_;  // instead of it, on a CUDA device
  std::shared_ptr<const DeviceWeights> card_weights_;
  std::unique_ptr<Exec> exec_;
  // From here on with work on the Exec's stream, which must outlive them.
  std::unique_ptr<PagedWeights> pages_;
  SavedPages::Pagers saved_pages_;
  Buffer params_, grads_;
  Buffer host_params_;  // pinned: the parameters on their way from and to files
  BatchSlots slots_;
  Moments moments_;
  LossSum sum_;  // of what was started
  std::vector<float> grads_copy_;
  std::vector<int32_t> targets_;
};

}  // namespace qlora
