#include "quant/codebook.h"

#include <gtest/gtest.h>

#include "tests/quant/same_bits.h"
#include "tests/support/golden_tensors.h"

namespace qlora {
namespace {

TEST(Codebook, EqualsTheLibraryBitForBit) {
  const golden::Tensors maps("quant/maps.safetensors");
  EXPECT_TRUE(same_bits(kNf4, maps.f32("nf4")));
  EXPECT_TRUE(same_bits(kFp4, maps.f32("fp4")));
  EXPECT_TRUE(same_bits(kNf4Thresholds, maps.f32("nf4_thresholds")));
  EXPECT_TRUE(same_bits(kFp4Thresholds, maps.f32("fp4_thresholds")));
}

TEST(Codebook, DynamicMapsAreGeneratedBitForBit) {
  const golden::Tensors maps("quant/maps.safetensors");
  EXPECT_TRUE(same_bits(dynamic_map(true), maps.f32("dynamic_signed")));
  EXPECT_TRUE(same_bits(dynamic_map(false), maps.f32("dynamic_unsigned")));
  EXPECT_EQ(dynamic_map(true)[127], 0.0f);
  EXPECT_EQ(dynamic_map(true)[255], 1.0f);
  EXPECT_EQ(dynamic_map(false)[0], 0.0f);
}

TEST(Codebook, OnlyFourBitFormatsHaveOne) {
  EXPECT_EQ(codebook(Format::nf4), kNf4.data());
  EXPECT_EQ(codebook(Format::fp4), kFp4.data());
  EXPECT_THROW(codebook(Format::int8), Error);
}

}  // namespace
}  // namespace qlora
