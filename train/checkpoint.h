#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/io/json.h"
#include "train/engine.h"

namespace qlora {

// Where a run stands between two steps: with the adapter and the moments, all that a resume needs, since
// every random choice is a function of seed, step and place.
struct RunState {
  int64_t step = 0;  // optimizer steps done
  int64_t tokens = 0;
  double seconds = 0;
  // Since the last line of metrics.
  double loss_sum = 0;
  int64_t loss_tokens = 0, line_tokens = 0;
  double line_seconds = 0;
  // The lowest evaluation so far.
  std::optional<double> best_loss;
  int64_t best_step = 0, evals_without_gain = 0;
  bool stopped_early = false;
  int64_t total_steps = 0;  // of the schedule it was made under

  Json to_json() const;
  static RunState from_json(const Json& j, const std::string& where);
};

// What a resume must find unchanged: name and value, as they are shown when they differ.
using RunIdentity = std::vector<std::pair<std::string, std::string>>;

// checkpoint-N in an output folder:
//   what write_adapter writes (PEFT adapter, tokenizer)
//   optimizer.safetensors   a tensor for each MomentPart that the optimizer has (train/moments.h)
//   trainer_state.json      RunState, identity, and size and sha256 of every file; written last
// Built as .partial-N, synced and renamed, so that a folder of the final name is whole.
class CheckpointStore {
 public:
  CheckpointStore(std::string output_dir, RunIdentity identity,
                  std::function<void(const std::string& folder)> write_adapter)
      : folder_(std::move(output_dir)),
        identity_(std::move(identity)),
        write_adapter_(std::move(write_adapter)) {}

  // Category::io when the system fails: former checkpoints stay as they were.
  void save(const RunState& state, Engine& engine) const;
  // After save() of `step`: deletes all but the newest `keep` up to it (0: keeps them all), and those of
  // later steps, which a run that went back, or passed over broken ones, has left behind.
  void prune(int64_t keep, int64_t step) const;

  struct Found {
    std::string path;
    RunState state;
  };
  // The newest whole checkpoint; `said` gets a line for each broken one that was passed over. Nothing when
  // there is none.
  std::optional<Found> newest(const std::function<void(const std::string&)>& said) const;
  // Category::input when `path` is no whole checkpoint.
  static Found open(const std::string& path);
  // Moments and parameters into the engine. Category::usage, with both values, when the run's identity
  // differs from the checkpoint's or the run has fewer steps.
  void load(const Found& found, int64_t total_steps,
            const std::function<void(const std::string& folder, std::span<float>)>& read_adapter,
            Engine& engine) const;

 private:
  std::vector<std::pair<int64_t, std::string>> list() const;  // step, path; ascending
  std::string folder_;
  RunIdentity identity_;
  std::function<void(const std::string&)> write_adapter_;
};

}  // namespace qlora
