#include "kernels/cuda/decode.h"
#include "kernels/gemm/gemm_cuda.h"

namespace qlora::cuda {
namespace {

// A block some hundred groups of eight elements of a row: any format.
struct DecodeKernel {
  static constexpr int kThreads = 128;
  Weight weight;
  bf16* out;
  int64_t stride, cols, first_row;  // cols: up to a multiple of eight

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t row = first_row + block_y(), col = (int64_t{block_x()} * kThreads + thread()) * kPer;
    if (col >= cols) return;
    Eight eight;
    for (int i = 0; i < kPer / 2; ++i) {
      const int64_t c = col + 2 * i;
      eight.pairs[i] = pack_bf16(c < weight.w.cols ? decode(weight, row, c) : 0.f,
                                 c + 1 < weight.w.cols ? decode(weight, row, c + 1) : 0.f);
    }
    *reinterpret_cast<Eight*>(out + row * stride + col) = eight;
  }
};

// nf4 and fp4 whose rows and blocks are of whole eights: one load of codes, one scale, one store a thread,
// and the values from shared memory, where a warp's sixteen different ones lie in as many banks.
struct DecodeFourBitsKernel {
  static constexpr int kThreads = 128;
  static constexpr size_t kShared = 16 * sizeof(float);
  Weight weight;
  bf16* out;
  int64_t eights;
  uint32_t row_eights;    // of a row; 0: rows follow each other in `out`, too
  int64_t stride_eights;  // of `out`

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> values = shared.take<float>(16);
    if (thread() < 16) values[thread()] = weight.codes[thread()];
    barrier();
    const int64_t at = int64_t{block_x()} * kThreads + thread();
    if (at >= eights) return;
    const uint32_t codes = static_cast<const uint32_t*>(weight.w.data)[at];
    const float scale = block_scale(weight.w, at * kPer / weight.w.block_size);
    Eight eight;
    for (int i = 0; i < kPer / 2; ++i) {
      const uint32_t byte = codes >> (8 * i) & 255;  // the first element in the high nibble
      const float first = values[static_cast<int>(byte >> 4)], second = values[static_cast<int>(byte & 15)];
      eight.pairs[i] = pack_bf16(first * scale * weight.w.scale, second * scale * weight.w.scale);
    }
    const int64_t row = row_eights == 0 ? 0 : static_cast<uint32_t>(at) / row_eights;
    reinterpret_cast<Eight*>(out)[at + row * (stride_eights - row_eights)] = eight;
  }
};

}  // namespace

void decode_weight(Exec& e, const WeightView& w, bf16* out, int64_t stride) {
  const bool four_bits = w.format == Format::nf4 || w.format == Format::fp4;
  const int64_t eights = w.elements() / kPer;
  if (four_bits && w.cols % kPer == 0 && w.block_size % kPer == 0 && eights <= UINT32_MAX) {
    const int64_t row = stride == w.cols ? 0 : w.cols / kPer;
    launch(e, {ceil_div(eights, DecodeFourBitsKernel::kThreads)}, DecodeFourBitsKernel::kShared,
           DecodeFourBitsKernel{Weight(w), out, eights, static_cast<uint32_t>(row), stride / kPer});
    return;
  }
  const int64_t cols = ceil_div(w.cols, kPer) * kPer;
  for (int64_t row = 0; row < w.rows; row += 65535) {  // as many as a grid has
    const int64_t rows = std::min<int64_t>(65535, w.rows - row);
    launch(e, {ceil_div(cols, kPer * DecodeKernel::kThreads), rows}, 0,
           DecodeKernel{Weight(w), out, stride, cols, row});
  }
}

}  // namespace qlora::cuda
