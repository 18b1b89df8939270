#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "quant/codebook.h"
#include "quant/quantize4.h"
#include "quant/weight_view.h"
#include "tests/quant/same_bits.h"
#include "tests/support/golden_tensors.h"

namespace qlora {
namespace {

constexpr int64_t kOut = 128, kIn = 192, kRows = 5;

DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::f32;
  return name == "bfloat16" ? DType::bf16 : DType::f16;
}

// A layer as bitsandbytes saved it.
struct Layer {
  golden::Tensors file;
  Format format;
  bool double_quant;
  nlohmann::json state;
  std::vector<uint8_t> packed, codes;
  std::vector<float> absmax, nested, map;
  WeightView view;

  explicit Layer(const std::string& name)
      : file("quant/linear4bit/" + name + ".safetensors"),
        format(name.starts_with("nf4") ? Format::nf4 : Format::fp4),
        double_quant(name.ends_with("_dq")),
        packed(file.u8("proj.weight")) {
    const std::string kind = format == Format::nf4 ? "nf4" : "fp4";
    const auto text = file.u8("proj.weight.quant_state.bitsandbytes__" + kind);
    state = nlohmann::json::parse(text.begin(), text.end());
    view.format = format;
    view.rows = state.at("shape").at(0).get<int64_t>();
    view.cols = state.at("shape").at(1).get<int64_t>();
    view.block_size = state.at("blocksize").get<int>();
    view.data = packed.data();
    if (!double_quant) {
      absmax = file.f32("proj.weight.absmax");
      view.absmax = absmax.data();
      return;
    }
    codes = file.u8("proj.weight.absmax");
    nested = file.f32("proj.weight.nested_absmax");
    map = file.f32("proj.weight.nested_quant_map");
    view.absmax_codes = codes.data();
    view.nested_absmax = nested.data();
    view.code_map = map.data();
    view.nested_offset = state.at("nested_offset").get<float>();
  }
  std::vector<float> decode() const {
    std::vector<float> w(kOut * kIn);
    for (int64_t r = 0; r < kOut; ++r) decode_row(view, r, 0, kIn, w.data() + r * kIn);
    return w;
  }
};

class Linear4bit : public ::testing::TestWithParam<const char*> {
 protected:
  Linear4bit() : layer(GetParam()), io("quant/linear4bit/io.safetensors") {}
  std::string key(const std::string& rest) const { return std::string(GetParam()) + "." + rest; }
  Layer layer;
  golden::Tensors io;
};

TEST_P(Linear4bit, MapsAreOurs) {
  ASSERT_EQ(layer.view.rows, kOut);
  ASSERT_EQ(layer.view.cols, kIn);
  EXPECT_TRUE(same_bits(layer.file.f32("proj.weight.quant_map"),
                        std::vector<float>(codebook(layer.format), codebook(layer.format) + 16)));
  if (layer.double_quant) {
    EXPECT_TRUE(same_bits(dynamic_map(true), layer.map));
  }
}

// From the weight before quantization to the library's bytes. Its CPU build departs from the rule in FP4's
// sign of zero and ties, and in 8-bit codes next to a midpoint, which it looks up in a coarse table.
TEST_P(Linear4bit, QuantizingGivesTheStoredLayer) {
  const std::vector<float> weight = io.f32(key("weight"));
  const auto n = static_cast<int64_t>(weight.size()), blocks = n / 64;
  std::vector<uint8_t> packed(n / 2), codes(blocks);
  std::vector<float> absmax(blocks), nested(2);
  ASSERT_EQ(quantize4(layer.format, weight.data(), n, 64, packed.data(), absmax.data()), -1);
  int other = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int shift = i % 2 ? 0 : 4;
    const int ours = packed[i / 2] >> shift & 15, theirs = layer.packed[i / 2] >> shift & 15;
    if (layer.format == Format::fp4 && (ours & 7) == 0 && (theirs & 7) == 0) continue;
    other += ours != theirs;
  }
  EXPECT_LE(other, layer.format == Format::nf4 ? 0 : n / 10000);
  if (!layer.double_quant) {
    EXPECT_TRUE(same_bits(absmax, layer.absmax));
    return;
  }
  EXPECT_EQ(absmax_offset(absmax.data(), blocks), layer.view.nested_offset);
  quantize_absmax(absmax.data(), blocks, layer.view.nested_offset, codes.data(), nested.data());
  EXPECT_TRUE(same_bits(nested, layer.nested));
  int moved = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    moved += codes[b] != layer.codes[b];
    EXPECT_LE(std::abs(codes[b] - layer.codes[b]), 1);
  }
  EXPECT_LE(moved, blocks / 100);
}

// Σ a[k * a_step] b[k * b_step] in fp64, and the bound of any fp32 summation: (k + 1) 2^-24 Σ |a b|.
struct Dot {
  double value = 0, bound = 0;
  Dot(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t k) {
    for (int64_t i = 0; i < k; ++i) {
      const double product = static_cast<double>(a[i * a_step]) * b[i * b_step];
      value += product;
      bound += std::fabs(product);
    }
    bound *= static_cast<double>(k + 1) * 0x1p-24;
  }
};

std::vector<float> rounded(std::vector<float> v, DType type) {
  for (float& x : v) x = round_to(type, x);
  return v;
}

// What the library computed from the bytes it stored: y = x Wᵀ + b and dx = dy W. Writing in bf16 costs half
// an ulp, 2^-8 of the result; with a bias perhaps once before it is added and once after.
TEST_P(Linear4bit, DecodedWeightsGiveTheLibrarysProducts) {
  const DType original = dtype_named(layer.state.at("dtype").get<std::string>());
  const std::vector<float> w = layer.decode();
  for (const DType type : {DType::f32, DType::bf16}) {
    const std::string name = type == DType::f32 ? "fp32" : "bf16";
    SCOPED_TRACE(name);
    const double unit = type == DType::f32 ? 0x1p-24 : 0x1p-8;
    const std::vector<float> x = rounded(io.f32("x"), type), dy = rounded(io.f32("dy"), type);
    const std::vector<float> forward = rounded(w, type), backward = rounded(rounded(w, original), type);
    const std::vector<float> y = io.f32(key(name + ".y")), dx = io.f32(key(name + ".dx"));
    std::vector<float> bias(kOut, 0.0f);
    if (layer.file.has("proj.bias")) bias = rounded(layer.file.f32("proj.bias"), type);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t o = 0; o < kOut; ++o) {
        const Dot d(&x[r * kIn], 1, &forward[o * kIn], 1, kIn);
        const double sum = d.value + bias[o];
        EXPECT_NEAR(y[r * kOut + o], sum, d.bound + unit * (std::fabs(sum) + std::fabs(d.value)));
      }
      for (int64_t i = 0; i < kIn; ++i) {
        const Dot d(&dy[r * kOut], 1, &backward[i], kIn, kOut);
        EXPECT_NEAR(dx[r * kIn + i], d.value, d.bound + unit * std::fabs(d.value));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Linear4bit, ::testing::Values("nf4_dq", "nf4", "fp4_dq"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora
