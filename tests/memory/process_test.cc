#include "memory/process.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace qlora {
namespace {

TEST(Process, PeakFollowsWhatIsTouched) {
  const size_t before = peak_resident_bytes();
  ASSERT_GT(before, size_t{1} << 20);
  constexpr size_t kBytes = size_t{256} << 20;
  {
    std::vector<char> block(kBytes);
    std::memset(block.data(), 1, block.size());
    EXPECT_GE(resident_set().anonymous, kBytes);
  }
  EXPECT_GE(peak_resident_bytes(), kBytes);
  EXPECT_LT(peak_resident_bytes(), before + 2 * kBytes);
}

TEST(Process, SomethingIsFree) {
  EXPECT_GT(available_bytes(), size_t{1} << 20);
  EXPECT_LT(available_bytes(), size_t{1} << 50);
}

}  // namespace
}  // namespace qlora
