// qlora-train: trains adapters over a frozen, quantized base.
#include <algorithm>
#include <chrono>
#include <filesystem>

#include "kernels/common/isa.h"
#include "memory/cuda/start.h"
#include "memory/file.h"
#include "memory/process.h"
#include "model/generate.h"
#include "tools/common/beside.h"
#include "tools/common/format.h"
#include "tools/common/main.h"
#include "tools/common/model_path.h"
#include "tools/common/plan.h"
#include "tools/common/signals.h"
#include "tools/common/tables.h"
#include "tools/common/threads.h"
#include "tools/common/train_run.h"
#include "train/output_folder.h"
#include "train/report.h"

using namespace qlora;
using namespace qlora::tools;

namespace {

constexpr int64_t kSampleTokens = 96;
constexpr size_t kSamples = 3;

class Watcher : public TrainerEvents {
 public:
  explicit Watcher(Screen& screen) : screen_(screen) {}
  void stepped(const TrainMetrics& m, int64_t total, double left) override {
    screen_.progress({.done = m.step,
                      .total = total,
                      .loss = m.loss,
                      .norm = m.grad_norm,
                      .tokens_per_second = m.tokens_per_second,
                      .seconds_left = left,
                      .bytes = m.memory_bytes});
  }
  void evaluated(const EvalMetrics& m) override {
    screen_.finish();
    screen_.line(cat("step ", m.step, " | eval loss ", format_value(m.eval_loss), " | accuracy ",
                     format_value(100 * m.eval_accuracy), "% of ", format_count(m.eval_tokens), " tokens"));
  }
  void saved(const std::string& folder) override { screen_.detail("saved " + folder); }
  bool stop() override { return stop_signal() != 0; }

 private:
  Screen& screen_;
};

// Whether a checkpoint lies in the output folder itself.
bool resumes_here(const std::string& from, const std::string& out) {
  namespace fs = std::filesystem;
  std::error_code absent;
  const fs::path checkpoint = fs::absolute(from + "/").lexically_normal().parent_path();
  return from == "last" || fs::equivalent(checkpoint.parent_path(), out, absent);
}

class TrainTool {
 public:
  explicit TrainTool(Options& options)
      : options_(options), screen_(options), threads_(thread_count(options)) {}
  int run();

 private:
  void open(bool to_train);
  void show_plan();
  void show_paging();
  RunState start();
  void write_adapter(const std::string& folder) const;
  void finish();
  std::vector<ReportSample> samples();
  Options& options_;
  Screen screen_;
  int threads_;
  std::string out_;
  Base base_;
  std::optional<BaseLoading> loading_;
  TextTools text_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<RowEncoder> encoder_;
  std::optional<TrainData> data_;
  std::optional<BatchPlan> plan_, eval_plan_;
  Adapter adapter_;
  std::unique_ptr<Engine> engine_;
  bool engine_paged_ = false;                          // its weights were
  size_t arena_bytes_ = 0, host_arena_bytes_ = 0;      // what it had
  std::shared_ptr<const DeviceWeights> card_weights_;  // what it leaves on a card
  std::optional<CheckpointStore> store_;
  std::optional<Trainer> trainer_;
  RunState state_;
};

// Weights are checked while tokenizer and data are read; what is wrong is said in the order below.
void TrainTool::open(bool to_train) {
  base_ = open_base(options_);
  // A budget that the run may not fit into is looked at before any weight is.
  const bool later = !to_train || options_.find<uint64_t>("memory").has_value();
  loading_.emplace(base_, threads_, BaseLoading::How{.identify = to_train, .later = later});
  settle(options_, base_);
  text_ = open_text_if_any(base_.source.path, options_.find<std::string>("chat-template"));
  encoder_ = row_encoder(options_, text_, base_.checkpoint->desc().vocab);
  data_ = read_train_data(options_, *encoder_, threads_);
  for (const std::string& line : said(data_->train.counts)) screen_.line(line);
  adapter_ = make_adapter(options_, base_, base_.checkpoint->desc());
  model_ = loading_->outline();

  plan_.emplace(data_->train, batch_options(options_));
  if (data_->eval) eval_plan_.emplace(*data_->eval, eval_batch_options(options_));
  if (!later) loading_->model(), loading_->fingerprint();
  return_freed_memory();
  engine_ = std::make_unique<Engine>(
      model_, adapter_.layout,
      engine_options(options_, threads_, plan_->maxima(), eval_plan_ ? eval_plan_->maxima() : BatchMaxima{},
                     plan_->total_steps()));
}

void TrainTool::show_plan() {
  const ModelDesc& d = model_->desc();
  int64_t parameters = d.vocab * d.dim * (d.tied ? 1 : 2);
  for (int b = 0; b < model_->block_count(); ++b)
    for (int k = 0; k < kLinears; ++k)
      parameters +=
          d.out_features(b, static_cast<LinearKind>(k)) * d.in_features(b, static_cast<LinearKind>(k));
  const EnginePlan& plan = engine_->plan();
  screen_.line(cat("model    ", base_.name, ": ", d.family, ", ", format_count(parameters), " parameters, ",
                   model_->storage()));
  screen_.line(cat("adapter  ", format_count(engine_->layout().size()), " trainable parameters, ",
                   engine_->layout().modules().size(), " linears"));
  screen_.line(cat("data     ", format_count(data_->train.size()), " rows",
                   options_.get<bool>("packing") ? cat(", packed into ", format_count(plan_->rows())) : "",
                   ", ", format_count(static_cast<int64_t>(plan_->tokens_per_step())), " tokens a step",
                   data_->eval ? cat("; ", format_count(data_->eval->size()), " held out") : ""));
  screen_.line(cat("steps    ", format_count(plan_->total_steps()), " (",
                   format_count(plan_->steps_per_epoch()), " an epoch), ", threads_, " threads, ",
                   name_of(active_isa())));
  const Device device = device_of(options_);
  const bool card = device.kind == DeviceKind::cuda;
  if (cuda::runtime_version() != 0) screen_.line("device   " + device_text(device));
  screen_.line(cat("memory   ", format_bytes(card ? plan.device_bytes : plan.total_bytes), " of ",
                   format_bytes(plan.budget_bytes),
                   card ? cat(" on the card, ", format_bytes(plan.host_bytes), " beside it") : "",
                   ", activations ", plan.choices(),
                   plan.weights_paged ? ", frozen weights read from their files at every pass" : ""));
  if (plan.extra_seconds > 0)
    screen_.line(cat("         ", format_bytes(plan.saved_bytes), " less than storing all, for ",
                     format_value(100 * plan.extra_seconds / (plan.seconds - plan.extra_seconds)),
                     "% more time a step, as estimated"));
  for (const std::string& line : plan_table_lines(plan)) screen_.detail("         " + line);
}

void TrainTool::write_adapter(const std::string& folder) const {
  save_adapter(folder, adapter_.config, engine_->layout(), engine_->params(),
               model_card(options_, base_, *data_, trainer_ ? trainer_->state() : state_));
  save_text(text_, folder);
}

// Step 0, or where a checkpoint stands.
RunState TrainTool::start() {
  const auto began = std::chrono::steady_clock::now();
  engine_->reserve();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  screen_.detail(cat("         ", format_bytes(engine_->plan().arena_bytes), " reserved in ",
                     format_value(took.count()), " s"));
  const auto read = [this](const std::string& folder, std::span<float> params) {
    load_adapter(folder, engine_->layout(), params);
  };
  std::optional<CheckpointStore::Found> found;
  if (const auto from = options_.find<std::string>("resume-from-checkpoint")) {
    const auto say = [this](const std::string& line) { screen_.warning(line); };
    found = *from == "last" ? store_->newest(say) : std::optional(CheckpointStore::open(*from));
    if (!found) screen_.line(out_ + ": no checkpoint yet, starting at step 0");
  }
  if (!found) {
    engine_->set_params([&](std::span<float> p) { begin_adapter(options_, adapter_.layout, p); });
    return {};
  }
  store_->load(*found, plan_->total_steps(), read, *engine_);
  screen_.line(
      cat("resuming from ", found->path, ", step ", found->state.step, " of ", plan_->total_steps()));
  if (found->state.total_steps != plan_->total_steps())
    screen_.line(cat("the schedule is now one of ", plan_->total_steps(),
                     " steps; the checkpoint was made under one of ", found->state.total_steps));
  return found->state;
}

// What pages cost, a step on average.
void TrainTool::show_paging() {
  const double steps = static_cast<double>(trainer_->state().step - state_.step);
  if (steps <= 0) return;
  const PagingCost& cost = engine_->paging_cost();
  const auto bytes = [&](uint64_t n) {
    return format_bytes(static_cast<uint64_t>(static_cast<double>(n) / steps));
  };
  const double compute = (cost.seconds - cost.weights.stall_seconds - cost.saved.stall_seconds) / steps;
  if (const PagedWeights* const pages = engine_->paged_weights()) {
    const double reading = static_cast<double>(cost.weights.bytes_read) / pages->bandwidth() / steps,
                 stall = cost.weights.stall_seconds / steps;
    screen_.line(cat("weights  ", bytes(cost.weights.bytes_read), " a step by ", pages->how(), " at ",
                     format_bytes(static_cast<uint64_t>(pages->bandwidth())), "/s: reading ",
                     format_value(reading), " s beside ", format_value(compute), " s of computing, stalled ",
                     format_value(stall), " s (", format_value(100 * stall / reading), "% of reading)"));
  }
  const auto& saved = engine_->saved_pages();
  const auto any = std::find_if(saved.begin(), saved.end(), [](const auto& p) { return p != nullptr; });
  if (any != saved.end())
    screen_.line(cat("inputs   ", bytes(cost.saved.bytes_written), " out and ", bytes(cost.saved.bytes_read),
                     " back a step by ", (*any)->how(), ", stalled ",
                     format_value(cost.saved.stall_seconds / steps), " s"));
  if (const Pager* const pages = engine_->moments().pager())
    screen_.line(cat("moments  ", bytes(cost.moments.bytes_read), " in and ",
                     bytes(cost.moments.bytes_written), " back a step by ", pages->how(), ", stalled ",
                     format_value(cost.moments.stall_seconds / steps), " s"));
}

// The first held-out rows answered by the base and by the adapter.
std::vector<ReportSample> TrainTool::samples() {
  std::vector<ReportSample> out;
  if (engine_paged_) {
    screen_.line("report.html goes without samples: answers need the weights in memory, and they do not fit");
    return out;
  }
  if (!data_->eval_rows || !text_.tokenizer || text_.templates.empty()) return out;
  const ReadOptions reading = read_options(options_, threads_);
  const DatasetFormat format = format_of(*data_->eval_rows, reading);
  if (format == DatasetFormat::text || format == DatasetFormat::tokens) return out;
  std::vector<Generator::Request> requests;
  int64_t longest = 0;
  for (int64_t i = 0; i < std::min<int64_t>(kSamples, data_->eval_rows->size()); ++i) {
    const Question q =
        question_of(data_->eval_rows->row(i), format, reading.columns, *encoder_, data_->eval_rows->where(i));
    longest = std::max(longest, static_cast<int64_t>(q.prompt.size()) + kSampleTokens);
    requests.push_back({q.prompt, kSampleTokens});
    out.push_back({text_.tokenizer->decode(q.prompt, true), q.wanted, "", ""});
  }
  const std::vector<int32_t> stops = stop_ids(model_->desc(), text_);
  const RunDevice on(device_of(options_), threads_, card_weights_);
  // A card's is in the plan of answers; the CPU reads it where it was loaded.
  const size_t adapter_bytes = on.on_card() ? 0 : static_cast<size_t>(adapter_.layout.size()) * sizeof(float);
  const auto answer = [&](const AdapterView& adapter, std::string ReportSample::*field) {
    // As many at a time as fit: no answer hangs on what runs beside it.
    for (int slots = static_cast<int>(requests.size()); slots > 0; --slots) {
      Generator generator(model_, numerics_of(options_), adapter, {slots, longest}, on);
      if (adapter_bytes + generator.bytes() > arena_bytes_ || generator.host_bytes() > host_arena_bytes_)
        continue;
      const auto answers = generator.run(requests, {}, stops, 0);
      for (size_t i = 0; i < answers.size(); ++i) out[i].*field = text_.tokenizer->decode(answers[i], true);
      return true;
    }
    return false;
  };
  if (!answer({}, &ReportSample::before)) {
    screen_.line("report.html goes without samples: the caches of an answer take more than training did");
    return {};
  }
  adapter_.params.resize(static_cast<size_t>(adapter_.layout.size()));
  load_adapter(out_, adapter_.layout, adapter_.params);
  answer(adapter_.view(), &ReportSample::after);
  return out;
}

void TrainTool::finish() {
  write_adapter(out_);
  RunResult result;
  fill_from(result, trainer_->metrics());
  result.stopped_early = trainer_->state().stopped_early;
  result.trainable_parameters = engine_->layout().size();
  result.tokens = trainer_->state().tokens;
  result.seconds = trainer_->state().seconds;
  result.tokens_per_second = result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0;
  result.memory_bytes = engine_->peak_bytes();
  result.base = base_.name;
  result.data_sha256 = data_->rows.sha256();
  if (data_->eval_rows) result.eval_data_sha256 = data_->eval_rows->sha256();
  result.settings = options_.to_json();
  const Json json = to_json(result);
  write_file(out_ + "/result.json", json.dump(1) + "\n");

  const auto reports = options_.get<std::vector<std::string>>("report-to");
  const Metrics metrics = trainer_->metrics();
  trainer_.reset();
  // The engine's arena makes room for the samples' adapter and caches: the peak stays the plan's.
  engine_paged_ = engine_->paged_weights() != nullptr;
  arena_bytes_ = engine_->plan().arena_bytes;
  host_arena_bytes_ = engine_->plan().host_arena_bytes;
  card_weights_ = engine_->card_weights();
  engine_.reset();
  if (std::find(reports.begin(), reports.end(), "html") != reports.end()) {
    Report report;
    report.title = "Training " + base_.name;
    report.figures = {{"steps", format_count(result.steps)},
                      {"tokens per second", format_value(result.tokens_per_second)},
                      {"peak memory", format_bytes(result.memory_bytes)}};
    if (result.last_eval) report.figures.emplace_back("eval loss", format_value(result.last_eval->eval_loss));
    report.metrics = metrics;
    report.samples = samples();
    report.settings = result.settings;
    write_file(out_ + "/report.html", render_report(report));
  }
  screen_.finish();
  screen_.line(cat("adapter in ", out_, "; try it: qlora-generate --model ",
                   options_.get<std::string>("model"), " --adapter ", out_,
                   text_.templates.empty() ? " --raw --prompt \"...\"" : " --chat"));
  if (options_.get<bool>("json")) print_json(json);
}

int TrainTool::run() {
  refuse_unbuilt(options_);
  if (!options_.get<bool>("dry-run")) require_device(options_);
  warn_of_unused_variables(options_, screen_);
  out_ = options_.get<std::string>("output-dir");
  const bool resume = options_.given("resume-from-checkpoint"),
             overwrite = options_.get<bool>("overwrite-output-dir");
  if (resume && overwrite)
    fail(Category::usage, options_.origin("overwrite-output-dir"),
         ": contradicts --resume-from-checkpoint; give one of them");
  if (options_.get<bool>("dry-run")) {
    open(false);
    show_plan();
    if (options_.get<bool>("json")) print_json(plan_json(engine_->plan()));
    return 0;
  }
  refuse_as_output(resolve_model(options_.get<std::string>("model")).path, out_);
  PolledSignals signals;
  // A checkpoint of another folder goes into a fresh one: what a run of its own left there is not its past.
  const bool goes_on = resume && resumes_here(options_.get<std::string>("resume-from-checkpoint"), out_);
  const OutputFolder folder(out_, goes_on     ? OutputFolder::Use::resume
                                  : overwrite ? OutputFolder::Use::overwrite
                                              : OutputFolder::Use::fresh);
  open(true);
  show_plan();
  loading_->model();
  return_freed_memory();
  folder.clear();
  const AdapterFiles files{[this](const std::string& to) { write_adapter(to); },
                           [this](const std::string& from, std::span<float> params) {
                             load_adapter(from, engine_->layout(), params);
                           }};
  store_.emplace(out_, identity_of(options_, loading_->fingerprint(), *data_), files.write);
  // Beside the reservation of memory; of a resumed run only when the checkpoint has proved to be its own.
  auto config = beside(!resume, [this] { write_file(out_ + "/config.yaml", options_.to_yaml()); });
  state_ = start();
  config.get();
  Watcher watcher(screen_);
  trainer_.emplace(*engine_, *plan_, eval_plan_ ? &*eval_plan_ : nullptr, *store_, files,
                   trainer_options(options_, plan_->total_steps()), watcher);
  const Trainer::End end = trainer_->run(state_);
  screen_.finish();
  show_paging();
  if (end == Trainer::End::interrupted) {
    screen_.line(cat("stopped at step ", trainer_->state().step, " of ", plan_->total_steps(),
                     "; go on with --resume-from-checkpoint last"));
    return stop_exit_code();
  }
  if (end == Trainer::End::stopped_early)
    screen_.line(cat("stopped early at step ", trainer_->state().step, ": no lower eval loss since step ",
                     trainer_->state().best_step));
  finish();
  return 0;
}

int body(Options& options) { return TrainTool(options).run(); }

}  // namespace

int main(int argc, char** argv) { return run_tool(argc, argv, train_table, this_build(), body); }
