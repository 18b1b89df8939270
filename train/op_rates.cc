#include "train/op_rates.h"

#include <time.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"
#include "memory/exec.h"
#include "memory/page_backends.h"
#include "quant/quantized_weight.h"

namespace qlora {
namespace {

constexpr int kRounds = 3;  // the best counts: the first warms caches up

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
double best_seconds(F&& f) {
  double best = 1e9;
  for (int i = 0; i < kRounds; ++i) {
    const double began = thread_seconds();
    f();
    best = std::min(best, thread_seconds() - began);
  }
  return std::max(best, 1e-9);
}

// Flops a second of f, which is planned as every op is.
template <class F>
double rate_of(F&& f) {
  Trace trace("rates");
  {
    Exec e = Exec::rehearsal(1);
    Phase phase(e, trace);
    f(e);
  }
  trace.lay_out();
  const Arena arena(trace.bytes);
  Exec e({DeviceKind::cpu, 0}, 1, arena.data());
  return trace.flops() / best_seconds([&] {
           Phase phase(e, trace);
           f(e);
         });
}

double product_rate() {
  constexpr int64_t kRows = 256, kIn = 512, kOut = 512;
  const QuantizedSpec spec;
  const QuantizedSizes n = sizes_of(spec, kOut, kIn);
  std::vector<uint8_t> codes(static_cast<size_t>(n.data)), absmax(static_cast<size_t>(n.absmax_codes));
  std::vector<float> nested(static_cast<size_t>(n.nested_absmax), 1.0f);
  const WeightView w = view_of(spec, kOut, kIn, {codes.data(), nullptr, absmax.data(), nested.data()});
  const std::vector<bf16> x(kRows * kIn);
  std::vector<bf16> y(kRows * kOut);
  const GemmTerm term{ConstMat(x.data(), kRows, kIn), w};
  return rate_of([&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, Mat(y.data(), kRows, kOut)); });
}

double attention_rate() {
  constexpr int64_t kTokens = 256, kDim = 128;
  const AttentionShape shape{2, 2, 64, .125f, 0, 0};
  const std::vector<bf16> q(kTokens * kDim), k(q), v(q);
  std::vector<bf16> o(q);
  const std::vector<int32_t> docs{0, kTokens};
  const auto view = [&](const std::vector<bf16>& m) { return ConstMat(m.data(), kTokens, kDim); };
  return rate_of([&](Exec& e) {
    attention_forward(e, shape, {docs, docs}, view(q), view(k), view(v), Mat(o.data(), kTokens, kDim), {});
  });
}

double copy_rate() {
  constexpr size_t kBytes = size_t{4} << 20;  // beyond the second cache
  std::vector<char> from(kBytes, 1), to(kBytes, 1);
  const double seconds = best_seconds([&] {
    std::memcpy(to.data(), from.data(), kBytes);
    from[0] = to[kBytes - 1];  // the copy is wanted
  });
  return 2 * static_cast<double>(kBytes) / seconds;
}

}  // namespace

OpRates cuda_rates() { return {.product = 6e13, .attention = 4e13, .bandwidth = 4e11, .transfer = 1.2e10}; }

OpRates measure_op_rates(int threads) {
  return {product_rate() * threads, attention_rate() * threads, copy_rate()};
}

double measure_disk_rate(const std::string& folder) {
  constexpr uint32_t kPages = 8;
  constexpr size_t kBytes = size_t{4} << 20;
  const std::unique_ptr<PageBackend> file = file_pages(PageFiles::temporary(folder, kPages, kBytes), 1);
  const auto align = static_cast<std::align_val_t>(PageBackend::kPageAlign);
  const auto free = [align](std::byte* p) { operator delete[](p, align); };
  const std::unique_ptr<std::byte[], decltype(free)> page(
      static_cast<std::byte*>(operator new[](kBytes, align)), free);
  // Written with something: what was only reserved is read without a disk.
  std::memset(page.get(), 1, kBytes);
  for (uint32_t p = 0; p < kPages; ++p) {
    file->start(0, {true, p, page.get(), kBytes});
    file->wait(0);
  }
  return measured_bandwidth(*file, kPages, kBytes);
}

}  // namespace qlora
