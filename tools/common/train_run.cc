#include "tools/common/train_run.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "kernels/common/isa.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm_choice.h"
#include "memory/cuda/host.h"
#include "memory/cuda/start.h"
#include "memory/process.h"
#include "tools/common/format.h"
#include "tools/common/option_value.h"
#include "tools/common/plan_rates.h"
#include "train/op_rates.h"

namespace qlora::tools {
namespace {

// Settings that leave the arithmetic of a step alone, or are told by a hash: they may change on resume.
constexpr std::array kMayChange = {"model",
                                   "dataset",
                                   "eval-dataset",
                                   "output-dir",
                                   "overwrite-output-dir",
                                   "device",
                                   "threads",
                                   "memory",
                                   "host-memory",
                                   "gradient-checkpointing",
                                   "logging-steps",
                                   "eval-steps",
                                   "save-steps",
                                   "save-total-limit",
                                   "max-steps",
                                   "num-train-epochs",
                                   "report-to",
                                   "resume-from-checkpoint",
                                   "verbose",
                                   "quiet",
                                   "json",
                                   "config",
                                   "dry-run",
                                   "init-adapter"};

double alpha_of(const Options& options) {
  return options.find<double>("lora-alpha")
      .value_or(2.0 * static_cast<double>(options.get<int64_t>("lora-r")));
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& w : words) text += (text.empty() ? "" : ",") + w;
  return text;
}

std::string asked_targets(const Options& options) {
  return joined(options.get<std::vector<std::string>>("target-modules"));
}

std::string targets_text(const ModuleTargets& t) { return t.names.empty() ? t.regex : joined(t.names); }

bool same_linears(const ModuleTargets& a, const ModuleTargets& b, const ModelDesc& desc) {
  const auto names = [&](const ModuleTargets& t) {
    std::vector<std::string> out;
    for (const ModuleRef& m : matching_linears(t, desc, "--target-modules")) out.push_back(m.name);
    return out;
  };
  return names(a) == names(b);
}

std::string number(double v) {
  std::string s = cat(v);
  return std::stod(s) == v ? s : nlohmann::json(v).dump();
}

OptimizerKind optimizer_of(const Options& options) {
  const auto at =
      std::find(kOptimizerNames.begin(), kOptimizerNames.end(), options.get<std::string>("optim"));
  check(at != kOptimizerNames.end(), "--optim has a choice that no optimizer has");
  return static_cast<OptimizerKind>(at - kOptimizerNames.begin());
}

}  // namespace

void refuse_unbuilt(const Options& options) {
  if (options.given("host-memory") && device_of(options).kind != DeviceKind::cuda)
    fail(Category::usage, options.origin("host-memory"),
         ": belongs to CUDA runs; give --device cuda with it, or --memory for the CPU");
}

std::string arithmetic_of(const Device& device, DType compute) {
  if (device.kind != DeviceKind::cuda) return name_of(active_isa());
  const cuda::Found card = cuda::find(device.index);
  std::string text = cat("cuda sm_", card.major, card.minor);
  if (const int64_t rows = row_tile(device); rows != kRowTile) text += cat(", tiles of ", rows, " rows");
  // Products of bf16 hang on who multiplies, too.
  if (compute != DType::bf16) return text;
  if (const char* const gemm = std::getenv("QLORA_GEMM")) text += cat(", QLORA_GEMM=", gemm);
  if (cuda_gemm() == CudaGemm::own) return text;
  text += cat(", cuBLASLt ", cuda::matmul_library(device.index), " on ", card.name);
  return gemm_algorithms().empty() ? text : text + ", algorithms " + gemm_algorithms().hash();
}

namespace {

void refuse_what_evaluates(const Options& options) {
  const auto refuse = [&](const char* option) {
    fail(Category::usage, options.origin(option),
         ": nothing is evaluated; give --eval-dataset or --eval-fraction, or leave it out");
  };
  if (options.get<bool>("load-best-model-at-end")) refuse("load-best-model-at-end");
  if (options.given("early-stopping-patience")) refuse("early-stopping-patience");
  // --eval-fraction 0 in so many words turns them off.
  if (options.given("eval-steps") && !options.given("eval-fraction")) refuse("eval-steps");
}

}  // namespace

TrainData read_train_data(const Options& options, const RowEncoder& encoder, int threads) {
  const ReadOptions reading = read_options(options, threads);
  TrainData d{open_rows(options, single_dataset(options, "dataset")), {}, {}, {}};
  const double fraction = options.get<double>("eval-fraction");
  if (options.given("eval-dataset")) {
    if (fraction > 0)
      fail(Category::usage, options.origin("eval-fraction"), ": and ", options.origin("eval-dataset"),
           " both name rows to hold out; give one");
    d.eval_rows.emplace(open_rows(options, single_dataset(options, "eval-dataset")));
    d.eval = read_dataset(*d.eval_rows, encoder, reading);
  }
  if (!d.eval_rows && fraction == 0) refuse_what_evaluates(options);
  d.train = read_dataset(d.rows, encoder, reading);
  if (fraction > 0) {
    auto [train, eval] =
        split_for_evaluation(d.train, fraction, static_cast<uint64_t>(options.get<int64_t>("seed")));
    d.train = std::move(train);
    d.eval = std::move(eval);
  }
  return d;
}

Adapter make_adapter(Options& options, const Base& base, const ModelDesc& desc) {
  const std::optional<std::string> init = options.find<std::string>("init-adapter");
  if (init && *init != "none") {
    Adapter a = open_adapter(init, desc);
    const auto contradicts = [&](const char* option, const std::string& has) {
      fail(Category::usage, options.origin(option), ": ", *init, " brings ", has, "; leave the option out");
    };
    if (options.given("lora-r") && options.get<int64_t>("lora-r") != a.config.r)
      contradicts("lora-r", cat("r ", a.config.r));
    if (options.given("lora-alpha") && alpha_of(options) != a.config.lora_alpha)
      contradicts("lora-alpha", cat("alpha ", a.config.lora_alpha));
    if (options.given("use-rslora") && options.get<bool>("use-rslora") != a.config.use_rslora)
      contradicts("use-rslora", a.config.use_rslora ? "rsLoRA" : "plain LoRA");
    if (options.given("target-modules") &&
        !same_linears(ModuleTargets::parse(asked_targets(options), desc), a.config.targets, desc))
      contradicts("target-modules", targets_text(a.config.targets));
    options.settle("target-modules", targets_text(a.config.targets));
    options.settle("lora-r", std::to_string(a.config.r));
    options.settle("lora-alpha", number(a.config.lora_alpha));
    options.settle("use-rslora", a.config.use_rslora ? "true" : "false");
    a.config.lora_dropout = options.get<double>("lora-dropout");
    a.config.base_model = base.name;
    std::vector<float>().swap(a.params);
    return a;
  }
  Adapter a;
  a.config.base_model = base.name;
  a.config.r = static_cast<int>(options.get<int64_t>("lora-r"));
  a.config.lora_alpha = alpha_of(options);
  a.config.lora_dropout = options.get<double>("lora-dropout");
  a.config.use_rslora = options.get<bool>("use-rslora");
  a.config.targets = ModuleTargets::parse(asked_targets(options), desc);
  a.layout = AdapterLayout(desc, adapter_choices(a.config, desc, options.origin("target-modules")));
  options.settle("lora-alpha", number(a.config.lora_alpha));
  return a;
}

void begin_adapter(const Options& options, const AdapterLayout& layout, std::span<float> params) {
  const std::optional<std::string> init = options.find<std::string>("init-adapter");
  if (init && *init != "none")
    load_adapter(*init, layout, params);
  else
    layout.initialize(static_cast<uint64_t>(options.get<int64_t>("seed")), params);
}

BatchOptions batch_options(const Options& options) {
  BatchOptions b;
  b.seed = static_cast<uint64_t>(options.get<int64_t>("seed"));
  b.shuffle = options.get<bool>("shuffle");
  b.packing = options.get<bool>("packing");
  b.max_seq_length = options.get<int64_t>("max-seq-length");
  b.batch = options.get<int64_t>("per-device-train-batch-size");
  b.accumulation = options.get<int64_t>("gradient-accumulation-steps");
  b.epochs = options.get<double>("num-train-epochs");
  b.max_steps = options.find<int64_t>("max-steps").value_or(0);
  return b;
}

BatchOptions eval_batch_options(const Options& options) {
  BatchOptions b = batch_options(options);
  b.shuffle = false;
  b.accumulation = 1;
  b.epochs = 1;
  b.max_steps = 0;
  return b;
}

TrainerOptions trainer_options(const Options& options, int64_t total_steps) {
  TrainerOptions t;
  t.output_dir = options.get<std::string>("output-dir");
  t.seed = static_cast<uint64_t>(options.get<int64_t>("seed"));
  t.lora_dropout = static_cast<float>(options.get<double>("lora-dropout"));
  t.schedule.type = parse_schedule_type(options.get<std::string>("lr-scheduler-type"));
  t.schedule.learning_rate = options.get<double>("learning-rate");
  t.schedule.total_steps = total_steps;
  t.schedule.warmup_steps = warmup_steps_of(options.find<int64_t>("warmup-steps"),
                                            options.get<double>("warmup-ratio"), total_steps);
  for (const auto& [key, value] : options.pairs("lr-scheduler-kwargs")) t.schedule.kwargs[key] = value;
  t.beta1 = options.get<double>("adam-beta1");
  t.beta2 = options.get<double>("adam-beta2");
  t.epsilon = options.get<double>("adam-epsilon");
  t.weight_decay = options.get<double>("weight-decay");
  t.max_grad_norm = options.get<double>("max-grad-norm");
  t.logging_steps = options.get<int64_t>("logging-steps");
  t.save_steps = options.get<int64_t>("save-steps");
  t.save_total_limit = options.get<int64_t>("save-total-limit");
  t.eval_steps = options.find<int64_t>("eval-steps").value_or(0);
  t.patience = options.find<int64_t>("early-stopping-patience").value_or(0);
  t.load_best = options.get<bool>("load-best-model-at-end");
  const auto reports = options.get<std::vector<std::string>>("report-to");
  t.tensorboard = std::find(reports.begin(), reports.end(), "tensorboard") != reports.end();
  return t;
}

EngineOptions engine_options(const Options& options, int threads, const BatchMaxima& train,
                             const BatchMaxima& eval, int64_t total_steps) {
  EngineOptions e;
  // Evaluations come at an epoch's end at least, and an epoch has a step.
  const int64_t eval_steps = options.find<int64_t>("eval-steps").value_or(1);
  e.log_lines = total_steps / options.get<int64_t>("logging-steps") +
                (eval.tokens > 0 ? 2 + total_steps / std::max<int64_t>(eval_steps, 1) : 0);
  e.train = train;
  e.eval = eval;
  e.batch_rows = options.get<int64_t>("per-device-train-batch-size");
  e.accumulation = options.get<int64_t>("gradient-accumulation-steps");
  e.numerics = numerics_of(options);
  e.threads = threads;
  e.device = device_of(options);
  const bool cuda = e.device.kind == DeviceKind::cuda;
  e.rates = cuda ? cuda_rates() : op_rates(threads);
  e.lora_dropout = static_cast<float>(options.get<double>("lora-dropout"));
  const std::string checkpointing = options.get<std::string>("gradient-checkpointing");
  e.checkpointing = checkpointing == "all"    ? Checkpointing::all
                    : checkpointing == "none" ? Checkpointing::none
                                              : Checkpointing::automatic;
  e.optimizer = optimizer_of(options);
  e.paging.folder = options.find<std::string>("output-dir").value_or("");
  if (const auto budget = options.find<uint64_t>("memory")) e.memory_budget = static_cast<size_t>(*budget);
  if (const auto budget = options.find<uint64_t>("host-memory")) e.host_budget = static_cast<size_t>(*budget);
  if (!cuda) return e;
  const bool there = e.device.index < cuda::device_count();
  if (!e.memory_budget && !there)
    fail(Category::usage, options.origin("device"),
         ": no such card is here to ask for its free memory; give --memory BYTES, the card's");
  if (there) {
    // What is taken already: context and kernels, all of them loaded, cuBLASLt's too, and what else uses the
    // card.
    if (e.numerics.compute == DType::bf16 && cuda_gemm() != CudaGemm::own) cuda::start_matmul(e.device.index);
    const cuda::DeviceInfo card = cuda::device_info(e.device.index);
    e.context_bytes = card.total_bytes - card.free_bytes;
    if (!e.memory_budget) e.memory_budget = card.total_bytes;
  }
  // Another machine's memory is not known here: the plan says what it takes.
  if (!e.host_budget && there) e.host_budget = available_bytes() + resident_set().anonymous;
  return e;
}

void settle(Options& options, const Base& base) {
  if (const auto& stored = base.checkpoint->quantization()) {
    options.settle("bits", stored->format == Format::int8 ? "8" : "4");
    if (stored->format == Format::int8) return;
    options.settle("quant-type", stored->format == Format::fp4 ? "fp4" : "nf4");
    options.settle("double-quant", stored->double_quant ? "true" : "false");
    options.settle("block-size", std::to_string(stored->block_size));
  } else {
    options.settle("bits", options.find<std::string>("bits").value_or("4"));
  }
}

RunIdentity identity_of(const Options& options, const std::string& base, const TrainData& data) {
  RunIdentity id = {{"base", base},
                    {"data", data.train.sha256.empty() ? data.rows.sha256() : data.train.sha256},
                    {"isa", arithmetic_of(device_of(options), numerics_of(options).compute)}};
  if (data.eval_rows) id.emplace_back("eval data", data.eval_rows->sha256());
  for (const Setting& s : options.settings_in_force()) {
    if (std::find(kMayChange.begin(), kMayChange.end(), s.name) != kMayChange.end()) continue;
    std::string value;
    // 1e-2 and 0.01 are one rate.
    for (const std::string& v : s.values)
      value += (value.empty() ? "" : " ") + (s.kind == Kind::real ? number(std::stod(v)) : v);
    id.emplace_back("--" + s.name, value);
  }
  return id;
}

ModelCard model_card(const Options& options, const Base& base, const TrainData& data, const RunState& state) {
  ModelCard card;
  card.base = base.name;
  card.data = data.rows.path();
  card.data_sha256 = data.rows.sha256();
  for (const char* name : {"bits", "quant-type", "double-quant", "compute-dtype", "lora-r", "lora-alpha",
                           "lora-dropout", "optim", "learning-rate", "lr-scheduler-type", "max-seq-length",
                           "per-device-train-batch-size", "gradient-accumulation-steps", "seed"})
    for (const Setting& s : options.settings_in_force())
      if (s.name == name && !s.values.empty()) card.settings.emplace_back(name, s.values.front());
  card.results.emplace_back("steps", std::to_string(state.step));
  card.results.emplace_back("tokens", format_count(state.tokens));
  if (state.best_loss) card.results.emplace_back("lowest eval loss", format_value(*state.best_loss));
  return card;
}

}  // namespace qlora::tools
