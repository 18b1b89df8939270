#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/algorithm_table.h"
#include "memory/dtype.h"
#include "memory/exec.h"
#include "memory/view.h"

// Products by NVIDIA's cuBLASLt. One of three bodies is linked: cublaslt_real.cc (opens libcublasLt.so.13
// when the first product is asked for: a build needs the library's headers alone, and a program starts where
// there is none), cublaslt_nocuda.cc, cublaslt_emulated.cc (tests: a plain loop on the emulated stream).
namespace qlora::cuda {

// What the library may use besides its operands: a constant, so that no choice of its hangs on free memory.
inline constexpr size_t kCublasLtWorkspace = size_t{32} << 20;
inline constexpr size_t kCublasLtAlign = 256;  // of that workspace

// d [m, n] = alpha * a b + beta * c, sums in fp32, rounded once; no sum is ever kept in bf16. Rows lie
// `stride` elements apart. c has d's type; it may be d, and is not read where beta is 0. m, n, k > 0.
struct Matmul {
  int64_t m = 0, n = 0, k = 0;
  const bf16* a = nullptr;
  int64_t a_stride = 0;
  bool a_by_k = false;  // lies as [k, m], else [m, k]
  const bf16* b = nullptr;
  int64_t b_stride = 0;
  bool b_by_k = false;  // lies as [k, n], else [n, k]
  float alpha = 1, beta = 0;
  ConstMat c;
  Mat d;
};

// The library's fast kernels want what lies on 16 bytes: base and rows of every operand, and whole groups of
// eight along them.
bool on_16_bytes(const ConstMat& m);
bool is_aligned(const Matmul& m);

// The table's name of m's shape: nt 512x4096x4096 bf16 (n or t: how a lies, how b lies; m x n x k; d's type;
// + where c is added).
std::string name_of(const Matmul& m);

// Puts the product on e's stream. m is aligned; workspace: kCublasLtWorkspace bytes on kCublasLtAlign. Of one
// shape, one GPU, one version of the library and one table, the same bits whenever it is called; another m
// may be another algorithm, so other bits of the same rows. Category::io when the library is absent (the text
// says what to do) or fails; Category::input when the table in force (kernels/gemm/gemm_choice.h) names an
// algorithm that the library refuses.
void matmul(Exec& e, const Matmul& m, void* workspace);

// Opens the library and makes its handle for the device, so that what is missing is told before a run. Later
// calls do nothing.
void start_matmul(int device);

// What was chosen so far, a line a product, each a line of an AlgorithmTable and a remark. Empty where
// nothing ran.
std::string matmul_log();

// What a table is made of (docs/cuda.md): the library's proposals for m's shape, under the conditions of
// matmul(), what it thinks best first; one at least, at most `most`.
std::vector<Algorithm> propose(int device, const Matmul& m, int most);
// The library as an AlgorithmTable names it.
std::string matmul_library(int device);

// A product by an algorithm that the caller chose, whatever the table says: for measurements. Its operands
// are m's.
class ChosenMatmul {
 public:
  // Category::input when the library refuses the algorithm for m.
  ChosenMatmul(int device, const Matmul& m, const Algorithm& algorithm);
  ~ChosenMatmul();
  // As matmul().
  void run(Exec& e, void* workspace) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What a body checks before anything else: Category::internal.
void check_matmul(const Matmul& m, const void* workspace);

}  // namespace qlora::cuda
