#include "kernels/rows/rows.h"

#include <cstring>

#include "kernels/common/rows.h"
#include "kernels/rows/rows_args.h"

#define QLORA_BODY "kernels/rows/rows_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {
namespace {

// f(i) for every row, in parallel.
template <class F>
void for_rows(const Exec& e, const ConstMat& shape, F&& f) {
  parallel_ranges(e, shape.rows, rows_per_task(shape.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

void copy_row(const ConstMat& x, int64_t from, const Mat& y, int64_t to) {
  const int64_t size = static_cast<int64_t>(size_of(x.dtype));
  std::memcpy(static_cast<char*>(y.data) + to * y.stride * size,
              static_cast<const char*>(x.data) + from * x.stride * size, static_cast<size_t>(x.cols * size));
}

}  // namespace

void gather_rows(Exec& e, const ConstMat& x, std::span<const int32_t> index, const Mat& y) {
  check(x.dtype == y.dtype && x.cols == y.cols && y.rows == static_cast<int64_t>(index.size()),
        "gather_rows: shapes differ");
  if (!e.op("gather_rows", 0, y.bytes(), y.bytes())) return;
  for (int32_t i : index) check(i >= 0 && i < x.rows, "gather_rows: row ", i, " of ", x.rows);
  if (e.on_cuda()) return copy_rows_cuda(e, x, index.data(), y, nullptr, y.rows);
  for_rows(e, y, [&](int64_t i) { copy_row(x, index[i], y, i); });
}

void scatter_rows(Exec& e, const ConstMat& x, std::span<const int32_t> index, const Mat& y) {
  check(x.dtype == y.dtype && x.cols == y.cols && x.rows == static_cast<int64_t>(index.size()),
        "scatter_rows: shapes differ");
  if (!e.op("scatter_rows", 0, x.bytes(), x.bytes())) return;
  for (int32_t i : index) check(i >= 0 && i < y.rows, "scatter_rows: row ", i, " of ", y.rows);
  if (e.on_cuda()) return copy_rows_cuda(e, x, nullptr, y, index.data(), x.rows);
  for_rows(e, x, [&](int64_t i) { copy_row(x, i, y, index[i]); });
}

void zero_rows(Exec& e, const Mat& y) {
  if (!e.op("zero_rows", 0, 0, y.bytes())) return;
  if (e.on_cuda()) return zero_rows_cuda(e, y);
  const size_t size = size_of(y.dtype);
  for_rows(e, y, [&](int64_t i) {
    std::memset(static_cast<char*>(y.data) + static_cast<size_t>(i * y.stride) * size, 0,
                static_cast<size_t>(y.cols) * size);
  });
}

void cast_rows(Exec& e, const ConstMat& x, const Mat& y) {
  check(x.rows == y.rows && x.cols == y.cols, "cast_rows: shapes differ");
  check(
      (x.dtype == DType::f32 || x.dtype == DType::bf16) && (y.dtype == DType::f32 || y.dtype == DType::bf16),
      "cast_rows: ", name_of(x.dtype), " to ", name_of(y.dtype));
  if (!e.op("cast_rows", 0, x.bytes(), y.bytes())) return;
  if (e.on_cuda()) return cast_rows_cuda(e, x, y);
  for_rows(e, x, [&](int64_t i) {
    if (x.dtype == y.dtype)
      copy_row(x, i, y, i);
    else
      QLORA_DISPATCH(cast_row_of, x, y, i);
  });
}

}  // namespace qlora
