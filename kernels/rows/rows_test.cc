#include "kernels/rows/rows.h"

#include <gtest/gtest.h>

#include "tests/support/body.h"

namespace qlora {
namespace {

using testing::Tensor;

constexpr DType kTypes[] = {DType::f32, DType::bf16};
constexpr int64_t kCols[] = {1, 7, 300, 513};
const std::vector<int32_t> kIndex = {4, 0, 3};

TEST(Rows, GatherAndScatter) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (DType t : kTypes)
      for (int64_t cols : kCols) {
        SCOPED_TRACE(cat(body.name(), " ", name_of(t), " ", cols));
        const Tensor x = Tensor::normal(t, 5, cols, 1, 1, 0), z = Tensor::normal(t, 5, cols, 2);
        Tensor y(t, 3, cols), back = z;
        testing::run_planned(2, [&](Exec& e) {
          gather_rows(e, x, kIndex, y.mat());
          scatter_rows(e, y, kIndex, back.mat());
        });
        for (int64_t j = 0; j < cols; ++j) {
          for (int64_t i = 0; i < 3; ++i) ASSERT_EQ(y.get(i, j), x.get(kIndex[static_cast<size_t>(i)], j));
          for (int64_t i : {0, 3, 4}) ASSERT_EQ(back.get(i, j), x.get(i, j));
          for (int64_t i : {1, 2}) ASSERT_EQ(back.get(i, j), z.get(i, j));
        }
        testing::expect_clean(y);
        testing::expect_clean(back);
      }
  }
}

TEST(Rows, CastRoundsOnceAndZeroClears) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (DType from : kTypes)
      for (DType to : kTypes)
        for (int64_t cols : kCols) {
          SCOPED_TRACE(cat(body.name(), " ", name_of(from), " to ", name_of(to), " ", cols));
          const Tensor x = Tensor::normal(from, 5, cols, 1);
          Tensor y(to, 5, cols);
          testing::run_planned(2, [&](Exec& e) {
            cast_rows(e, x, y.mat());
            zero_rows(e, y.mat().row_range(2, 2));
          });
          for (int64_t i = 0; i < 5; ++i)
            for (int64_t j = 0; j < cols; ++j) {
              const bool cleared = i == 2 || i == 3;
              ASSERT_EQ(y.get(i, j), cleared ? 0. : round_to(to, static_cast<float>(x.get(i, j))));
            }
          testing::expect_clean(y);
        }
  }
}

TEST(Rows, RefusesARowThatIsNotThere) {
  const Tensor x = Tensor::normal(DType::f32, 5, 4, 1);
  Tensor y(DType::f32, 1, 4), z(DType::f32, 5, 4);
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  for (int32_t i : {-1, 5}) {
    const std::vector<int32_t> index = {i};
    EXPECT_THROW(gather_rows(e, x, index, y.mat()), Error);
    EXPECT_THROW(scatter_rows(e, y, index, z.mat()), Error);
  }
}

}  // namespace
}  // namespace qlora
