#include "kernels/dropout/dropout.h"

#include "kernels/common/rows.h"
#include "kernels/dropout/dropout_args.h"
#include "kernels/dropout/dropout_ref.h"

namespace qlora {
namespace {

void check_dropout(const DropoutKey& key, std::span<const uint64_t> tokens, const ConstMat& x,
                   const ConstMat& y) {
  check(is_activation(x.dtype) && is_activation(y.dtype), "dropout: takes fp32 and bf16");
  check(same_shape(x, y) && static_cast<int64_t>(tokens.size()) == x.rows, "dropout: shapes differ");
  check(key.p >= 0 && key.p < 1, "dropout: p = ", key.p, " is not in [0, 1)");
}

DropoutArgs dropout_args(const DropoutKey& key, std::span<const uint64_t> tokens, const ConstMat& x,
                         const Mat& y) {
  const auto scale = static_cast<float>(1 / (1 - static_cast<double>(key.p)));
  return {ref::dropout_module_key(key), ref::dropout_threshold(key.p), scale, tokens.data(), x, y};
}

}  // namespace
}  // namespace qlora

#define QLORA_BODY "kernels/dropout/dropout_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void dropout_forward(Exec& e, const DropoutKey& key, std::span<const uint64_t> tokens, const ConstMat& x,
                     const Mat& y) {
  check_dropout(key, tokens, x, y);
  check(x.dtype == y.dtype, "dropout: x and y share a type");
  if (!e.op("dropout", static_cast<double>(x.rows) * x.cols, x.bytes(), y.bytes())) return;
  const DropoutArgs a = dropout_args(key, tokens, x, y);
  if (e.on_cuda()) return dropout_forward_cuda(e, a);
  const auto body = QLORA_PICK(dropout_forward_rows);
  parallel_ranges(e, x.rows, rows_per_task(x.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

void dropout_backward(Exec& e, const DropoutKey& key, std::span<const uint64_t> tokens, const ConstMat& dy,
                      const Mat& dx) {
  check_dropout(key, tokens, dy, dx);
  if (!e.op("dropout_backward", 2. * dy.rows * dy.cols, dy.bytes() + dx.bytes(), dx.bytes())) return;
  const DropoutArgs a = dropout_args(key, tokens, dy, dx);
  if (e.on_cuda()) return dropout_backward_cuda(e, a);
  const auto body = QLORA_PICK(dropout_backward_rows);
  parallel_ranges(e, dy.rows, rows_per_task(dy.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
