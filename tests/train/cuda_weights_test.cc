// A model's weights on a CUDA device, emulated: every byte, where kernels can take it, through staging
// buffers that are many times too small.
#include <gtest/gtest.h>

#include <cstring>

#include "memory/cuda/emulated.h"
#include "model/device_weights.h"
#include "model/mapped_weights.h"
#include "tests/support/random_llama.h"
#include "tests/support/temp_folder.h"
#include "tests/train/llama_fixture.h"

namespace qlora::testing {
namespace {

class CudaWeights : public ::testing::Test {
 protected:
  void SetUp() override { cuda::emulate({.seed = 9}); }
  void TearDown() override { cuda::emulate({}); }

  void expect_array(const void* device, const void* host, size_t bytes) {
    ASSERT_EQ(device == nullptr, host == nullptr);
    if (host == nullptr) return;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(device) % 16, 0u);
    std::vector<std::byte> back(bytes);
    stream.copy(back.data(), device, bytes);
    stream.synchronize();
    EXPECT_EQ(std::memcmp(back.data(), host, bytes), 0);
    seen += (bytes + 15) / 16 * 16;
  }
  void expect_view(WeightView device, WeightView host) {
    std::vector<const void*> parts;
    for_each_part(device, [&](const auto* p, size_t) { parts.push_back(p); });
    size_t i = 0;
    for_each_part(host, [&](const auto* p, size_t bytes) { expect_array(parts.at(i++), p, bytes); });
    EXPECT_EQ(parts.size(), i);
    EXPECT_EQ(device.rows, host.rows);
    EXPECT_EQ(device.format, host.format);
    EXPECT_EQ(device.nested_offset, host.nested_offset);
  }
  void expect_all(const Model& model) {
    seen = 0;
    const DeviceWeights device(model, stream);
    const ModelDesc& d = model.desc();
    expect_view(device.head(), model.head());
    expect_array(device.final_norm(), model.final_norm(), static_cast<size_t>(d.dim) * sizeof(float));
    for (int b = 0; b < model.block_count(); ++b) {
      for (int k = 0; k < kNorms; ++k)
        expect_array(device.block(b).norm[static_cast<size_t>(k)],
                     model.block(b).norm[static_cast<size_t>(k)],
                     static_cast<size_t>(d.norm_size(b, static_cast<NormKind>(k))) * sizeof(float));
      for (size_t k = 0; k < kLinears; ++k) {
        expect_view(device.block(b).linear[k], model.block(b).linear[k]);
        expect_array(device.block(b).bias[k], model.block(b).bias[k],
                     static_cast<size_t>(d.out_features(b, static_cast<LinearKind>(k))) * sizeof(float));
      }
    }
    EXPECT_EQ(device.bytes(), seen) << "bytes that nobody reads";
    size_t counted = DeviceWeights::padding(model);
    for (const Model::Part& p : model.parts())
      if (!p.looked_up) counted += p.codes + p.constants;
    EXPECT_EQ(device.bytes(), counted) << "the plan counts others";
  }

  cuda::Stream stream{0};
  size_t seen = 0;
};

TEST_F(CudaWeights, EveryArrayOfEveryFormat) {
  for (const char* folder : {"llama", "llama/nf4", "llama_bias_tied", "qwen3"}) {
    SCOPED_TRACE(folder);
    expect_all(*load_golden(folder));
  }
  BaseSpec spec;
  spec.quantize = QuantizedSpec{Format::int8, 64, false};
  expect_all(*load_golden("llama_bias_tied", spec));
  // A head of four buffers and a part of one.
  const test::TempFolder folder;
  test::write_random_llama(folder.path(), {1, 64, 96, 4, 2, 70001, true}, .2f);
  expect_all(*Model::load(Checkpoint::open(folder.path()), {}, 2));
}

}  // namespace
}  // namespace qlora::testing
