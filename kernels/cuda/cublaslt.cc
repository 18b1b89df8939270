#include "kernels/cuda/cublaslt.h"

namespace qlora::cuda {
namespace {

bool on_16(const void* data, int64_t stride, DType type) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
         stride * static_cast<int64_t>(size_of(type)) % 16 == 0;
}

}  // namespace

bool on_16_bytes(const ConstMat& m) { return on_16(m.data, m.stride, m.dtype); }

bool is_aligned(const Matmul& m) {
  const bool whole_a = (m.a_by_k ? m.m : m.k) % 8 == 0, whole_b = (m.b_by_k ? m.n : m.k) % 8 == 0;
  return whole_a && whole_b && m.n % 8 == 0 && on_16(m.a, m.a_stride, DType::bf16) &&
         on_16(m.b, m.b_stride, DType::bf16) && on_16_bytes(m.d) && (m.beta == 0 || on_16_bytes(m.c));
}

std::string name_of(const Matmul& m) {
  return cat(m.a_by_k ? 't' : 'n', m.b_by_k ? 'n' : 't', ' ', m.m, 'x', m.n, 'x', m.k, ' ',
             m.d.dtype == DType::bf16 ? "bf16" : "fp32", m.beta == 0 ? "" : " +");
}

void check_matmul(const Matmul& m, const void* workspace) {
  const std::string name = name_of(m);
  check(m.m > 0 && m.n > 0 && m.k > 0 && m.a != nullptr && m.b != nullptr, name, ": an empty product");
  check(m.a_stride >= (m.a_by_k ? m.m : m.k) && m.b_stride >= (m.b_by_k ? m.n : m.k), name, ": rows overlap");
  check(m.d && m.d.rows == m.m && m.d.cols == m.n && m.d.stride >= m.n, name, ": d is [", m.d.rows, ", ",
        m.d.cols, "]");
  check(m.beta == 0 ||
            (m.c && m.c.dtype == m.d.dtype && m.c.rows == m.m && m.c.cols == m.n && m.c.stride >= m.n),
        name, ": c is [", m.c.rows, ", ", m.c.cols, "]");
  check(m.d.data != m.a && m.d.data != m.b, name, ": d is an operand");
  check(is_aligned(m), name, ": off 16 bytes");
  check(workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % kCublasLtAlign == 0, name,
        ": workspace off ", kCublasLtAlign, " bytes");
}

}  // namespace qlora::cuda
