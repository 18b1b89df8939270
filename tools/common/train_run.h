#pragma once
// A training run as qlora-train puts it together from its options.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/common/dataset.h"
#include "tools/common/session.h"
#include "train/checkpoint.h"
#include "train/data/batches.h"
#include "train/engine.h"
#include "train/schedule.h"
#include "train/trainer.h"

namespace qlora::tools {

// The rows that are trained on and held out.
struct TrainData {
  DataRows rows;
  std::optional<DataRows> eval_rows;  // --eval-dataset
  Dataset train;
  std::optional<Dataset> eval;
};
TrainData read_train_data(const Options& options, const RowEncoder& encoder, int threads);

// Branches on the model by --lora-r, --lora-alpha, --target-modules, or --init-adapter, whose r, alpha and
// targets are then settled into the options. Without parameters: those go where training has them.
Adapter make_adapter(Options& options, const Base& base, const ModelDesc& desc);
// The parameters that a run begins with: drawn from the seed, or --init-adapter's.
void begin_adapter(const Options& options, const AdapterLayout& layout, std::span<float> params);

BatchOptions batch_options(const Options& options);
BatchOptions eval_batch_options(const Options& options);  // each held-out row once, in order
TrainerOptions trainer_options(const Options& options, int64_t total_steps);
// For the largest batches of a run of so many steps (0: not known); eval all zero: none.
EngineOptions engine_options(const Options& options, int threads, const BatchMaxima& train,
                             const BatchMaxima& eval, int64_t total_steps);

// What computes, as a checkpoint names it: an instruction set, or the architecture of a card, and in bf16 the
// library that multiplies there, its version and the GPU that it picks algorithms for.
std::string arithmetic_of(const Device& device, DType compute);

// Refuses what is known and not built, in one line each.
void refuse_unbuilt(const Options& options);
// Records what automatic settings came to, so that config.yaml reruns the run.
void settle(Options& options, const Base& base);

// What a resume must find unchanged: settings in force but those that may change, and the hashes of base and
// data. `base`: the checkpoint's fingerprint.
RunIdentity identity_of(const Options& options, const std::string& base, const TrainData& data);

// The numbers and settings that README.md of an adapter shows.
ModelCard model_card(const Options& options, const Base& base, const TrainData& data, const RunState& state);

}  // namespace qlora::tools
