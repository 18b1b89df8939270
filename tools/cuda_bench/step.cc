#include "tools/cuda_bench/step.h"

#include <cmath>

#include "memory/process.h"
#include "memory/random.h"
#include "tools/cuda_bench/drawn_model.h"
#include "tools/cuda_bench/parts.h"
#include "tools/cuda_bench/profile.h"
#include "train/op_rates.h"

namespace qlora::bench {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

AdapterLayout all_linears(const ModelDesc& desc, int rank) {
  std::vector<LoraChoice> choices;
  for (int block = 0; block < static_cast<int>(desc.blocks.size()); ++block)
    for (int k = 0; k < kLinears; ++k) choices.push_back({block, static_cast<LinearKind>(k), rank, 2});
  return {desc, choices};
}

Batch rows_of(const StepSize& s, int64_t vocab) {
  Batch b;
  b.cu_seqlens = {0};
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t i = 0; i < s.sequence; ++i) {
      const auto token = [&](int64_t at) {
        return static_cast<int32_t>(random_bits(static_cast<uint64_t>(row), static_cast<uint64_t>(at)) %
                                    static_cast<uint64_t>(vocab));
      };
      const bool label = i + 1 < s.sequence;
      if (label) b.loss_rows.push_back(static_cast<int32_t>(b.tokens()));
      b.places.push_back(static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(i));
      b.ids.push_back(token(i));
      b.targets.push_back(label ? token(i + 1) : -1);
      b.positions.push_back(static_cast<int32_t>(i));
    }
    b.cu_seqlens.push_back(static_cast<int32_t>(b.tokens()));
  }
  return b;
}

EngineOptions options_of(int device, const StepSize& s, const Batch& b) {
  EngineOptions o;
  o.device = {DeviceKind::cuda, device};
  o.train = {b.tokens(), b.documents(), s.sequence, static_cast<int64_t>(b.loss_rows.size())};
  o.batch_rows = s.rows;
  o.accumulation = s.accumulation;
  o.numerics.row_tile = row_tile(o.device);
  o.rates = cuda_rates();
  const cuda::DeviceInfo card = cuda::device_info(device);
  o.context_bytes = card.total_bytes - card.free_bytes;
  o.memory_budget = card.total_bytes;
  o.host_budget = available_bytes() + resident_set().anonymous;
  return o;
}

// Microbatches in turns with the roof would cool the card: the roof is measured before and after, as long as
// a step is.
void measure_steps(Bench& b, MatrixRoof& roof, const char* part, Training& training, const StepSize& s) {
  training.step();  // warms up
  const double tokens = static_cast<double>(s.tokens() * s.accumulation);
  std::vector<double> seconds, roofs{roof.rate(b.sizes.sustained)};
  while (static_cast<int>(seconds.size()) < s.timed && (seconds.empty() || b.time_for("a step"))) {
    const double began = now();
    training.step();
    seconds.push_back(now() - began);
    roofs.push_back(roof.rate(b.sizes.sustained));
  }
  const double took = median(seconds), flops = flops_per_token(s);
  b.report.say(cat(part, ": ", row_tile({DeviceKind::cuda, b.device}), " rows a tile"));
  const std::string what = cat(s.name, ", ", s.rows, " x ", s.sequence, " x ", s.accumulation);
  b.report.add({part, what, took, tokens / took, "tokens/s", 0, ""});
  b.report.add({part, what + ", model flops", took, 1e-12 * flops * tokens / took, "TFLOP/s",
                1e-12 * median(roofs), roof.name() + ", sustained",
                cat(flops * 1e-9, " GFLOP a token, median of ", seconds.size(), " steps")});
}

void profile_pass(Bench& b, const char* part, Training& training) {
  // The engine's stream is its own: the first launch tells which it is.
  class Finder : public cuda::Observer {
   public:
    cuda::Stream* stream = nullptr;
    void launched(cuda::Stream& s, const char*) override { stream = stream == nullptr ? &s : stream; }
    void multiplied(cuda::Stream&, const cuda::Matmul&) override {}
  } finder;
  cuda::observer = &finder;
  training.start();
  cuda::observer = nullptr;
  training.engine().losses();
  const Profile profile(*finder.stream);
  training.start();
  const auto entries = profile.entries();
  training.engine().losses();
  double all = 0;
  std::vector<std::pair<std::string, Profile::Entry>> sorted(entries.begin(), entries.end());
  for (const auto& [name, e] : sorted) all += e.seconds;
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& x, const auto& y) { return x.second.seconds > y.second.seconds; });
  for (const auto& [name, e] : sorted)
    b.report.add({part, "pass: " + name, e.seconds, std::max(100 * e.seconds / all, 1e-3),
                  "% of a microbatch", 0, "",
                  e.flops > 0 ? cat(e.times, " times, ", 1e-12 * e.flops / e.seconds, " TFLOP/s")
                              : cat(e.times, " times")});
}

void train_part(Bench& b, const char* part, const StepSize& s) {
  MatrixRoof roof(b);  // first: its memory must be there
  const double began = now();
  const size_t before = cuda::device_info(b.device).free_bytes;
  Training training(b.device, s);
  const EnginePlan& plan = training.engine().plan();
  const double taken = static_cast<double>(before - cuda::device_info(b.device).free_bytes);
  b.report.say(cat(part, ": ", s.name, " made and on the card after ", now() - began, " s; activations ",
                   plan.choices(), plan.decodes_ahead ? ", weights decoded ahead" : ""));
  b.report.add({part, s.name + ", memory taken", 0, taken * 0x1p-30, "GiB", 0, "",
                cat("planned with the context: ", static_cast<double>(plan.device_bytes) * 0x1p-30, " GiB")});
  measure_steps(b, roof, part, training, s);
  if (b.time_for("the time by kernel")) profile_pass(b, part, training);
}

}  // namespace

Training::Training(int device, const StepSize& size) : size_(size) {
  std::shared_ptr<const Model> model = drawn_model(size);
  batch_ = rows_of(size, model->desc().vocab);
  AdapterLayout layout = all_linears(model->desc(), size.rank);
  engine_ = std::make_unique<Engine>(std::move(model), std::move(layout), options_of(device, size, batch_));
  engine_->reserve();
  engine_->set_params([&](std::span<float> p) { engine_->layout().initialize(7, p); });
}

void Training::start() {
  const auto labels = static_cast<float>(batch_.loss_rows.size()) * static_cast<float>(size_.accumulation);
  engine_->start(batch_, {1, static_cast<uint64_t>(number_), 0, 0}, 1 / labels);
}

void Training::step() {
  engine_->zero_grads();
  for (int64_t i = 0; i < size_.accumulation; ++i) start();
  const double norm = engine_->grad_norm();
  const LossSum sum = engine_->losses();
  if (!std::isfinite(sum.loss) || !std::isfinite(norm))
    fail(Category::diverged, size_.name, ": loss ", sum.loss, ", gradient norm ", norm,
         ": the card computes something else than the CPU; run tools/test --cuda");
  AdamWHyper h;
  h.lr = 1e-4;
  h.step = ++number_;
  h.grad_scale = static_cast<float>(std::min(1., 1 / (norm + 1e-6)));
  engine_->update(h);
}

void small_part(Bench& b) { train_part(b, "small", b.sizes.small); }
void step_part(Bench& b) { train_part(b, "step", b.sizes.large); }

}  // namespace qlora::bench
