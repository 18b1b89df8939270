#pragma once
#include <gtest/gtest.h>

#include "kernels/gemm/gemm_choice.h"
#include "tests/support/body.h"

namespace qlora {

// Products on CUDA by one body, in one of the emulator's variants.
class GemmCuda : public ::testing::Test {
 protected:
  ~GemmCuda() override {
    set_cuda_gemm(CudaGemm::by_rows);
    set_gemm_algorithms({});
  }
  template <class F>
  void on_cuda(CudaGemm choice, const F& f) {
    set_cuda_gemm(choice);
    const testing::WithBody with({{DeviceKind::cuda, 0}, active_isa(), 1});
    f();
  }
};

}  // namespace qlora
