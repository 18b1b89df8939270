#include "tools/cuda_bench/roofs.h"

namespace qlora::bench {
namespace {

Device card_of(const Bench& b) { return {DeviceKind::cuda, b.device}; }

cuda::Matmul square(const std::vector<DrawnMatrix>& operands, int64_t size) {
  return {.m = size,
          .n = size,
          .k = size,
          .a = operands[0].input().row<bf16>(0),
          .a_stride = size,
          .b = operands[1].input().row<bf16>(0),
          .b_stride = size,
          .beta = 0,
          .c = {},
          .d = Mat(operands[2].view().data, DType::bf16, size, size, size)};
}

}  // namespace

Fastest fastest(const Bench& b, Exec& e, const cuda::Matmul& m, void* workspace) {
  const std::vector<cuda::Algorithm> all = cuda::propose(b.device, m, b.sizes.proposals);
  Fastest best{all.front(), 0, 0, 0, static_cast<int>(all.size())};
  for (size_t i = 0; i < all.size(); ++i) {
    const cuda::ChosenMatmul product(b.device, m, all[i]);
    const auto run = [&](Exec& on) { product.run(on, workspace); };
    const int64_t calls = calls_of(e, b.sizes.burst / 4, run);
    std::vector<double> seconds;
    for (int round = 0; round < b.sizes.rounds; ++round) seconds.push_back(burst(e, calls, run));
    const double took = median(seconds);
    if (i == 0) best.first = best.seconds = took;
    if (took >= best.seconds) continue;
    best.algorithm = all[i];
    best.seconds = took;
    best.which = static_cast<int>(i);
  }
  return best;
}

MatrixRoof::MatrixRoof(const Bench& b) : exec_(card_of(b), 1, nullptr), space_(b.device) {
  const int64_t largest = *std::max_element(b.sizes.peak.begin(), b.sizes.peak.end());
  for (int i = 0; i < 3; ++i) operands_.emplace_back(exec_.stream(), largest, largest);
  double best = 0;
  for (const int64_t size : b.sizes.peak) {
    const cuda::Matmul m = square(operands_, size);
    const Fastest f = fastest(b, exec_, m, space_.data());
    const double n = static_cast<double>(size), rate = 2 * n * n * n / f.seconds;
    b.report.say(cat("roof: cuBLASLt's best of ", f.of, " for ", size, "^3 in bf16, in short: ", rate * 1e-12,
                     " TFLOP/s (its first: ", 2e-12 * n * n * n / f.first, ")"));
    if (rate <= best) continue;
    best = rate;
    size_ = size;
    product_ = std::make_unique<cuda::ChosenMatmul>(b.device, m, f.algorithm);
  }
}

double MatrixRoof::rate(double seconds) {
  const auto run = [&](Exec& e) { product_->run(e, space_.data()); };
  const double n = static_cast<double>(size_);
  return 2 * n * n * n / burst(exec_, calls_of(exec_, seconds, run), run);
}

CopyRoof::CopyRoof(const Bench& b)
    : exec_(card_of(b), 1, nullptr),
      from_(take(b.device, b.sizes.copy_bytes)),
      to_(take(b.device, b.sizes.copy_bytes)) {
  draw_bytes(exec_.stream(), from_.data(), from_.bytes());
}

double CopyRoof::rate(double seconds) {
  const auto run = [&](Exec& e) { e.stream().copy(to_.data(), from_.data(), to_.bytes()); };
  return 2 * static_cast<double>(to_.bytes()) / burst(exec_, calls_of(exec_, seconds, run), run);
}

}  // namespace qlora::bench
