#include "model/rope_table.h"

#include <cmath>
#include <numbers>

namespace qlora {
namespace {

// Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended.
float llama3_scaled(const RopeDesc& d, float frequency) {
  const double original = static_cast<double>(d.original_max_positions);
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength > original / d.low_freq_factor) return static_cast<float>(frequency / d.factor);
  if (wavelength < original / d.high_freq_factor) return frequency;
  const double smooth =
      (original / wavelength - d.low_freq_factor) / (d.high_freq_factor - d.low_freq_factor);
  return static_cast<float>((1 - smooth) * frequency / d.factor + smooth * frequency);
}

}  // namespace

std::vector<float> rope_frequencies(const RopeDesc& d, int rotary_dims) {
  std::vector<float> f(static_cast<size_t>(rotary_dims / 2));
  for (size_t i = 0; i < f.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dims);
    f[i] = 1.0f / static_cast<float>(std::pow(d.theta, static_cast<double>(exponent)));
    switch (d.kind) {
      case RopeDesc::Kind::standard:
        break;
      case RopeDesc::Kind::linear:
        f[i] = static_cast<float>(f[i] / d.factor);
        break;
      case RopeDesc::Kind::llama3:
        f[i] = llama3_scaled(d, f[i]);
        break;
    }
    if (!d.gguf_factors.empty()) f[i] /= d.gguf_factors.at(i);
  }
  return f;
}

RopeTables::RopeTables(const RopeDesc& desc, int rotary_dims, int64_t positions)
    : desc_(desc), positions_(positions), rotary_dims_(rotary_dims) {
  // Not zeroed: pages become resident when they are filled.
  cos_.reset(new float[half_bytes() / sizeof(float)]);
  sin_.reset(new float[half_bytes() / sizeof(float)]);
}

void RopeTables::fill() {
  if (filled_) return;
  filled_ = true;
  const std::vector<float> f = rope_frequencies(desc_, rotary_dims_);
  for (int64_t p = 0; p < positions_; ++p)
    for (size_t i = 0; i < f.size(); ++i) {
      const double angle = static_cast<double>(static_cast<float>(p) * f[i]);
      cos_[static_cast<size_t>(p) * f.size() + i] = static_cast<float>(std::cos(angle));
      sin_[static_cast<size_t>(p) * f.size() + i] = static_cast<float>(std::sin(angle));
    }
}

void RopeTables::move_to(cuda::Stream& stream) {
  fill();
  device_ = cuda::Memory::allocate(cuda::MemoryKind::device, stream.device(), bytes());
  if (!device_)
    fail(Category::memory, "the card has no room for rope tables of ", bytes(),
         " bytes; shorter documents need less");
  stream.copy(device_.data(), cos_.get(), half_bytes());
  stream.copy(device_.data() + half_bytes(), sin_.get(), half_bytes());
  stream.synchronize();
  cos_.reset();
  sin_.reset();
}

}  // namespace qlora
