#include "kernels/rope/rope.h"

#include "kernels/common/rows.h"
#include "kernels/rope/rope_args.h"

#define QLORA_BODY "kernels/rope/rope_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void rope(Exec& e, const RopeTable& table, std::span<const int32_t> positions, int heads, int head_dim,
          bool inverse, const Mat& x) {
  check(is_activation(x.dtype), "rope: takes fp32 and bf16");
  check(heads > 0 && head_dim > 0 && x.cols == int64_t{heads} * head_dim, "rope: x is not heads * head_dim");
  check(static_cast<int64_t>(positions.size()) == x.rows, "rope: one position a row");
  check(table.rotary_dims > 0 && table.rotary_dims % 2 == 0 && table.rotary_dims <= head_dim,
        "rope: rotary_dims ", table.rotary_dims, " of head_dim ", head_dim);
  const double turned = static_cast<double>(x.rows) * heads * table.rotary_dims;
  const double bytes = turned * size_of(x.dtype);
  if (!e.op("rope", 3 * turned, bytes + 4. * x.rows * (table.rotary_dims + 1), bytes)) return;
  for (int32_t p : positions) check(p >= 0 && p < table.positions, "rope: position ", p, " is off the table");
  const RopeArgs a{table, positions.data(), heads, head_dim, inverse, x};
  if (e.on_cuda()) return rope_cuda(e, a);
  const auto body = QLORA_PICK(rope_rows);
  parallel_ranges(e, x.rows, rows_per_task(x.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
