#include "kernels/embedding/embedding.h"

#include "kernels/common/rows.h"
#include "kernels/embedding/embedding_args.h"
#include "memory/cuda/host.h"

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

void gather_rows_of(const Exec& e, std::span<const int32_t> ids, const WeightView& table, float scale,
                    const Mat& y) {
  parallel_ranges(e, y.rows, rows_per_task(y.cols), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) gather_row(table, ids[static_cast<size_t>(i)], scale, y, i);
  });
}

// The checking half of both.
bool asked(Exec& e, std::span<const int32_t> ids, const WeightView& table, const Mat& y) {
  check(is_activation(y.dtype), "embedding: gives fp32 or bf16");
  check(static_cast<int64_t>(ids.size()) == y.rows && y.cols == table.cols, "embedding: y is not ids x cols");
  const double share = table.rows == 0 ? 0 : static_cast<double>(y.rows) / table.rows;
  if (!e.op("embedding", static_cast<double>(y.rows) * y.cols, share * table.stored_bytes(), y.bytes()))
    return false;
  for (int32_t id : ids) check(id >= 0 && id < table.rows, "embedding: id ", id, " of ", table.rows);
  return true;
}

}  // namespace

void embedding(Exec& e, std::span<const int32_t> ids, const WeightView& table, float scale, const Mat& y) {
  if (!asked(e, ids, table, y)) return;
  if (e.on_cuda()) return embedding_cuda(e, {ids.data(), table, scale, y});
  gather_rows_of(e, ids, table, scale, y);
}

void embedding_of_host(Exec& e, std::span<const int32_t> ids, const WeightView& table, float scale,
                       const Mat& y) {
  check(e.on_cuda() && y.stride == y.cols, "embedding: a host's table goes to a device's rows, end to end");
  const Buffer pinned =
      e.allocate(Region::staging, "embedding rows", static_cast<size_t>(y.bytes()), Place::host);
  if (!asked(e, ids, table, y)) return;
  gather_rows_of(e, ids, table, scale, Mat(pinned.data(), y.dtype, y.rows, y.cols, y.cols));
  e.stream().copy(y.data, pinned.data(), static_cast<size_t>(y.bytes()));
  e.stream().synchronize();  // the next rows go to the same place
}

}  // namespace qlora
