#pragma once
#include <string>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "tools/cuda_bench/card.h"

namespace qlora::bench {

// The library's workspace, aligned.
class MatmulSpace {
 public:
  explicit MatmulSpace(int device) : memory_(take(device, cuda::kCublasLtWorkspace + cuda::kCublasLtAlign)) {}
  void* data() const {
    constexpr uintptr_t kAlign = cuda::kCublasLtAlign;
    return memory_.data() + (kAlign - reinterpret_cast<uintptr_t>(memory_.data()) % kAlign) % kAlign;
  }

 private:
  cuda::Memory memory_;
};

// Of the library's proposals for m, the one that takes least; and how long each took, in its order.
struct Fastest {
  cuda::Algorithm algorithm;
  double seconds;  // a call's
  double first;    // of the first proposal
  int which, of;   // counted from 0
};
Fastest fastest(const Bench& b, Exec& e, const cuda::Matmul& m, void* workspace);

// The best of cuBLASLt's square products in bf16.
class MatrixRoof : public Roof {
 public:
  // Tries every size and proposal; says what it found.
  explicit MatrixRoof(const Bench& b);
  std::string name() const override { return cat("cuBLASLt ", size_); }
  double rate(double seconds) override;

 private:
  Exec exec_;
  MatmulSpace space_;
  std::vector<DrawnMatrix> operands_;
  std::unique_ptr<cuda::ChosenMatmul> product_;
  int64_t size_ = 0;
};

// A copy within the card's memory: bytes read and bytes written.
class CopyRoof : public Roof {
 public:
  explicit CopyRoof(const Bench& b);
  std::string name() const override { return "a copy"; }
  double rate(double seconds) override;

 private:
  Exec exec_;
  cuda::Memory from_, to_;
};

}  // namespace qlora::bench
