#include "kernels/embedding/embedding.h"

#include "kernels/common/rows.h"
#include "kernels/embedding/embedding_args.h"

namespace qlora {
namespace {

// Decoding dominates, so one body serves every ISA.
void gather_row(const WeightView& table, int64_t id, float scale, const Mat& y, int64_t row) {
  constexpr int64_t kChunk = 512;
  float decoded[kChunk];
  for (int64_t col = 0; col < table.cols; col += kChunk) {
    const int64_t n = std::min(kChunk, table.cols - col);
    decode_row(table, id, col, n, decoded);
    if (y.dtype == DType::bf16) {
      bf16* out = y.row<bf16>(row) + col;
      for (int64_t j = 0; j < n; ++j) out[j] = bf16(decoded[j] * scale);
    } else {
      float* out = y.row<float>(row) + col;
      for (int64_t j = 0; j < n; ++j) out[j] = decoded[j] * scale;
    }
  }
}

}  // namespace

void embedding(Exec& e, std::span<const int32_t> ids, const WeightView& table, float scale, const Mat& y) {
  check(is_activation(y.dtype), "embedding: gives fp32 or bf16");
  check(static_cast<int64_t>(ids.size()) == y.rows && y.cols == table.cols, "embedding: y is not ids x cols");
  const double share = table.rows == 0 ? 0 : static_cast<double>(y.rows) / table.rows;
  if (!e.op("embedding", static_cast<double>(y.rows) * y.cols, share * table.stored_bytes(), y.bytes()))
    return;
  for (int32_t id : ids) check(id >= 0 && id < table.rows, "embedding: id ", id, " of ", table.rows);
  if (e.on_cuda()) return embedding_cuda(e, {ids.data(), table, scale, y});
  parallel_ranges(e, y.rows, rows_per_task(y.cols), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) gather_row(table, ids[i], scale, y, i);
  });
}

}  // namespace qlora
