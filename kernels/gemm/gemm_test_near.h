#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/gemm/gemm_ref.h"

namespace qlora {

// Each product and each sum rounds by at most 2^-24 of what the absolute values add up to (twice a term where
// the ISA has no fused multiply-add), then y rounds once.
inline void expect_near(const ConstMat& y, const GemmSums<double>& want, int64_t terms,
                        const std::string& what) {
  const double unit = std::ldexp(1.0, y.dtype == DType::bf16 ? -8 : -24);
  for (int64_t m = 0; m < y.rows; ++m)
    for (int64_t n = 0; n < y.cols; ++n) {
      const size_t at = static_cast<size_t>(m * y.cols + n);
      const double got = gemm_element<double>(y, m, n);
      const double sums = (2.0 * static_cast<double>(terms) + 4) * std::ldexp(1.0, -24) * want.magnitude[at];
      const double bound = sums + unit * (std::abs(want.sum[at]) + sums);
      ASSERT_NEAR(got, want.sum[at], bound) << what << " [" << m << ", " << n << "]";
    }
}

}  // namespace qlora
