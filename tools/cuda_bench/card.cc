#include "tools/cuda_bench/card.h"

#include <cmath>
#include <random>

#include "quant/codebook.h"

namespace qlora::bench {
namespace {

constexpr size_t kPattern = 2097143;  // elements: a prime number

// `pattern` at the beginning of the memory, then again and again: what there is, copied behind itself.
void repeat(cuda::Stream& stream, void* to, size_t bytes, const std::vector<std::byte>& pattern) {
  auto* const out = static_cast<std::byte*>(to);
  size_t there = std::min(bytes, pattern.size());
  stream.copy(out, pattern.data(), there);
  stream.synchronize();
  for (; there < bytes; there = std::min(bytes, 2 * there))
    stream.copy(out + there, out, std::min(there, bytes - there));
  stream.synchronize();
}

}  // namespace

bool Bench::time_for(const std::string& what) {
  if (std::chrono::steady_clock::now() < deadline) return true;
  cut = true;
  report.say("left out, the time is up: " + what);
  return false;
}

double median(std::vector<double> v) {
  check(!v.empty(), "the median of nothing");
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

cuda::Memory take(int device, size_t bytes, cuda::MemoryKind kind) {
  cuda::Memory m = cuda::Memory::allocate(kind, device, std::max<size_t>(bytes, 1));
  if (!m)
    fail(Category::memory, "cuda:", device, " grants no ", bytes, " bytes; end what else uses the card");
  return m;
}

void draw_normal(cuda::Stream& stream, void* to, size_t bytes, float deviation) {
  std::vector<std::byte> pattern(kPattern * sizeof(bf16));
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, deviation);
  for (size_t i = 0; i < kPattern; ++i) reinterpret_cast<bf16*>(pattern.data())[i] = bf16(normal(random));
  repeat(stream, to, bytes, pattern);
}

void draw_bytes(cuda::Stream& stream, void* to, size_t bytes) {
  std::vector<std::byte> pattern(kPattern);
  std::mt19937_64 random(2);
  for (std::byte& b : pattern) b = static_cast<std::byte>(random() >> 56);
  repeat(stream, to, bytes, pattern);
}

DrawnMatrix::DrawnMatrix(cuda::Stream& stream, int64_t rows, int64_t cols, DType type)
    : memory_(take(stream.device(), static_cast<size_t>(rows * cols) * size_of(type))),
      view_(memory_.data(), type, rows, cols, cols) {
  if (type == DType::bf16)
    draw_normal(stream, memory_.data(), memory_.bytes(), 1);
  else
    stream.fill(memory_.data(), 0, memory_.bytes()), stream.synchronize();
}

DrawnWeight::DrawnWeight(cuda::Stream& stream, int64_t rows, int64_t cols) {
  constexpr size_t kAlign = 256;
  const QuantizedSizes n = sizes_of(kNf4Spec, rows, cols);
  const auto place = [](int64_t size) { return (static_cast<size_t>(size) + kAlign - 1) / kAlign * kAlign; };
  const size_t codes = place(n.data), scales = place(n.absmax_codes), nested = place(4 * n.nested_absmax);
  memory_ = take(stream.device(), codes + scales + nested + 256 * sizeof(float));
  std::byte* const at = memory_.data();
  draw_bytes(stream, at, codes + scales);
  const std::vector<float> absmax(static_cast<size_t>(n.nested_absmax), kNestedAbsmax);
  stream.copy(at + codes + scales, absmax.data(), absmax.size() * sizeof(float));
  std::byte* const map = at + codes + scales + nested;
  stream.copy(map, dynamic_map(true).data(), 256 * sizeof(float));
  stream.synchronize();
  view_ = view_of(
      kNf4Spec, rows, cols,
      {at, nullptr, reinterpret_cast<uint8_t*>(at + codes), reinterpret_cast<float*>(at + codes + scales)});
  view_.code_map = reinterpret_cast<const float*>(map);
  view_.nested_offset = kNestedOffset;
}

Planned::Planned(int device, Op op) : op_(std::move(op)) {
  const Device card{DeviceKind::cuda, device};
  {
    Exec rehearsal = Exec::rehearsal(1, card);
    const Phase phase(rehearsal, trace_);
    op_(rehearsal);
  }
  trace_.lay_out();
  arena_ = take(device, trace_.bytes);
  host_ = take(device, trace_.host_bytes, cuda::MemoryKind::pinned);
  exec_ = std::make_unique<Exec>(card, 1, arena_.data(), host_.data());
}

Figure in_turns(const Bench& b, Roof& roof, Exec& e, const std::function<void(Exec&)>& f) {
  const int64_t calls = calls_of(e, b.sizes.burst, f);
  std::vector<double> seconds, roofs;
  for (int i = 0; i < b.sizes.rounds; ++i) {
    roofs.push_back(roof.rate(b.sizes.burst));
    seconds.push_back(burst(e, calls, f));
  }
  roofs.push_back(roof.rate(b.sizes.burst));
  return {median(seconds), median(roofs)};
}

}  // namespace qlora::bench
