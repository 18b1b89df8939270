#include "kernels/gemm/gemm_cuda.h"

#include "kernels/cuda/body.h"
#include "kernels/cuda/decode.h"

namespace qlora {
namespace cuda {
namespace {

// A block's tile of the output and its step along k; warps are 2 x 4, each of 64 x 32.
constexpr int kTileM = 128, kTileN = 128, kStepK = 32, kGroup = 8;
constexpr int kStages80 = 3, kDeepStages = 5;  // of the two bodies
constexpr int kWarpM = 64, kWarpN = 32;

// An operand's tile in shared memory: kRows x kCols as its matrix lies. Rows are 16 bytes longer than they
// need be, so that the eight rows that a matrix load reads lie in different banks.
template <int kRowsOf, int kColsOf>
struct Tile {
  static constexpr int kRows = kRowsOf, kCols = kColsOf, kStride = kCols + 8, kSize = kRows * kStride;
};

struct Operand {
  const bf16* data;
  int64_t stride;
  bool aligned;  // rows begin on 16 bytes: they are copied asynchronously
};

struct Term {
  Operand a, b;
  int64_t k;
};

struct Args {
  Term terms[kMostGemmTerms];
  int64_t count, m, n;
  float scale;  // of the products' sum, before bias and residual
  const float* bias;
  ConstMat residual;
  Mat y;
};

// y [m, n] = scale * sum over terms of a b + bias + residual. a lies as [m, k], or [k, m] where kAByK; b as
// [n, k], or [k, n] where kBByK. kStages steps are in shared memory at once: that changes no bit.
template <bool kAByK, bool kBByK, int kStages>
struct GemmKernel {
  static constexpr int kThreads = 256;
  using TileA = std::conditional_t<kAByK, Tile<kStepK, kTileM>, Tile<kTileM, kStepK>>;
  using TileB = std::conditional_t<kBByK, Tile<kStepK, kTileN>, Tile<kTileN, kStepK>>;
  static constexpr size_t kShared = kStages * (TileA::kSize + TileB::kSize) * sizeof(bf16);
  static constexpr size_t kMostShared = kStages == kDeepStages ? kDeepSharedBytes : kMostSharedBytes;
  Args args;

  // Where the next step along k is: its term and the place in it.
  struct Step {
    int term = 0;
    int64_t k = 0;
  };

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<bf16> tiles_a = shared.take<bf16>(kStages * TileA::kSize),
                       tiles_b = shared.take<bf16>(kStages * TileB::kSize);
    // Blocks that run together share rows and columns: kGroup tiles of rows by all of columns.
    const int tiles_m = static_cast<int>((args.m + kTileM - 1) / kTileM);
    const int tiles_n = static_cast<int>((args.n + kTileN - 1) / kTileN);
    const int group = block_x() / (kGroup * tiles_n), in_group = block_x() % (kGroup * tiles_n);
    const int rows = tiles_m - group * kGroup < kGroup ? tiles_m - group * kGroup : kGroup;
    const int64_t m0 = (group * kGroup + in_group % rows) * kTileM, n0 = in_group / rows * kTileN;

    int steps = 0;
    for (int t = 0; t < args.count; ++t) steps += static_cast<int>((args.terms[t].k + kStepK - 1) / kStepK);
    Step next;
    float sums[kWarpM / 16][kWarpN / 8][4] = {};
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) load(tiles_a, tiles_b, s, m0, n0, next);
      commit_copies();
    }
    for (int s = 0; s < steps; ++s) {
      wait_copies<kStages - 2>();
      barrier();  // step s is there for all, and nobody reads step s - 1 any more
      if (s + kStages - 1 < steps) load(tiles_a, tiles_b, (s + kStages - 1) % kStages, m0, n0, next);
      commit_copies();
      multiply(tiles_a.from(s % kStages * TileA::kSize), tiles_b.from(s % kStages * TileB::kSize), sums);
    }
    store(sums, m0 + warp() % 2 * kWarpM, n0 + warp() / 2 * kWarpN);
  }

  QLORA_DEVICE void load(Shared<bf16> tiles_a, Shared<bf16> tiles_b, int stage, int64_t m0, int64_t n0,
                         Step& next) const {
    while (next.k >= args.terms[next.term].k) {  // (a term may be empty)
      ++next.term;
      next.k = 0;
    }
    const Term& t = args.terms[next.term];
    const Shared<bf16> a = tiles_a.from(stage * TileA::kSize), b = tiles_b.from(stage * TileB::kSize);
    if constexpr (kAByK)
      load_tile<TileA>(a, t.a, next.k, t.k, m0, args.m);
    else
      load_tile<TileA>(a, t.a, m0, args.m, next.k, t.k);
    if constexpr (kBByK)
      load_tile<TileB>(b, t.b, next.k, t.k, n0, args.n);
    else
      load_tile<TileB>(b, t.b, n0, args.n, next.k, t.k);
    next.k += kStepK;
  }

  // The tile at (row, col) of a matrix [rows, cols], zeros outside of it.
  template <class T>
  QLORA_DEVICE void load_tile(Shared<bf16> tile, const Operand& o, int64_t row, int64_t rows, int64_t col,
                              int64_t cols) const {
    constexpr int kEights = T::kCols / 8;
    for (int i = thread(); i < T::kRows * kEights; i += kThreads) {
      const int r = i / kEights, c = i % kEights * 8, at = r * T::kStride + c;
      const int64_t left = row + r < rows ? cols - (col + c) : 0;
      const int count = left <= 0 ? 0 : left < 8 ? static_cast<int>(left) : 8;
      const bf16* from = o.data + (count > 0 ? (row + r) * o.stride + col + c : 0);
      if (o.aligned) {
        copy_async16(tile, at, from, count * 2);
      } else {
        for (int j = 0; j < 8; ++j) tile[at + j] = j < count ? from[j] : from_float<bf16>(0.f);
      }
    }
  }

  QLORA_DEVICE void multiply(Shared<bf16> a, Shared<bf16> b,
                             float (&sums)[kWarpM / 16][kWarpN / 8][4]) const {
    const int m0 = warp() % 2 * kWarpM, n0 = warp() / 2 * kWarpN;
    // The row of the matrix that this lane names, and which matrix: in turn along m (or n), and along k.
    const int row = lane() % 8, second = lane() / 8 % 2, fourth = lane() / 16;
#pragma unroll
    for (int k = 0; k < kStepK; k += 16) {
      uint32_t fa[kWarpM / 16][4], fb[kWarpN / 16][4];
#pragma unroll
      for (int i = 0; i < kWarpM / 16; ++i) {
        const int m = m0 + i * 16 + second * 8, kk = k + fourth * 8;
        if constexpr (kAByK)
          load_matrices_transposed(fa[i], a, (kk + row) * TileA::kStride + m);
        else
          load_matrices(fa[i], a, (m + row) * TileA::kStride + kk);
      }
#pragma unroll
      for (int j = 0; j < kWarpN / 16; ++j) {
        const int n = n0 + j * 16 + fourth * 8, kk = k + second * 8;
        if constexpr (kBByK)
          load_matrices_transposed(fb[j], b, (kk + row) * TileB::kStride + n);
        else
          load_matrices(fb[j], b, (n + row) * TileB::kStride + kk);
      }
#pragma unroll
      for (int i = 0; i < kWarpM / 16; ++i)
#pragma unroll
        for (int j = 0; j < kWarpN / 8; ++j)
          mma_bf16(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }

  QLORA_DEVICE void store(const float (&sums)[kWarpM / 16][kWarpN / 8][4], int64_t m0, int64_t n0) const {
#pragma unroll
    for (int i = 0; i < kWarpM / 16; ++i)
#pragma unroll
      for (int j = 0; j < kWarpN / 8; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int64_t m = m0 + i * 16 + lane() / 4 + v / 2 * 8, n = n0 + j * 8 + lane() % 4 * 2 + v % 2;
          if (m < args.m && n < args.n) store_element(m, n, sums[i][j][v] * args.scale);
        }
  }

  QLORA_DEVICE void store_element(int64_t m, int64_t n, float f) const {
    if (args.bias != nullptr) f += args.bias[n];
    if (args.residual.data != nullptr) f += element(args.residual, m, n);
    set_element(args.y, m, n, f);
  }
};

Operand operand(const ConstMat& m) { return {static_cast<const bf16*>(m.data), m.stride, on_16_bytes(m)}; }

template <class Kernel>
void launch_tiles(Exec& e, const Args& args) {
  launch(e, {ceil_div(args.m, kTileM) * ceil_div(args.n, kTileN)}, Kernel::kShared, Kernel{args});
}

template <bool kAByK, bool kBByK>
void launch_gemm(Exec& e, const Args& args) {
  if (cuda_body(e.stream().device()) == Body::deep)
    launch_tiles<GemmKernel<kAByK, kBByK, kDeepStages>>(e, args);
  else
    launch_tiles<GemmKernel<kAByK, kBByK, kStages80>>(e, args);
}

}  // namespace

void gemm_tiles(Exec& e, const GemmCall& call, const GemmSpace& space) {
  const auto count = static_cast<int64_t>(call.terms.size());
  check(count <= kMostGemmTerms, "gemm: ", count, " terms");
  Args args{{}, 0, call.y.rows, call.y.cols, 1.f, call.epilogue.bias, call.epilogue.residual, call.y};
  const auto multiply = [&](std::span<const GemmTerm> terms, const DecodedWeights& decoded) {
    bf16* at = decoded.data();
    args.count = 0;
    for (const GemmTerm& t : terms) {
      const int64_t stride = decoded_stride(t.w);
      const bool stays = is_decoded(t.w);
      if (!stays) decoded.decode(t.w, at, stride);
      args.terms[args.count++] = {
          operand(t.x), operand({stays ? t.w.data : at, DType::bf16, t.w.rows, t.w.cols, stride}), t.x.cols};
      if (!stays) at += t.w.rows * stride;
    }
    decoded.ready();
    call.transposed_w ? launch_gemm<false, false>(e, args) : launch_gemm<false, true>(e, args);
    decoded.read();
    args.bias = nullptr;
    args.residual = call.y;  // what there is of the sum
  };
  if (call.y.dtype != DType::f32)
    return multiply(call.terms, {e, space.ahead ? call.ahead : nullptr, space.decoded});
  for (const GemmTerm& t : call.terms) multiply({&t, 1}, decoded_weight(e, call, t, space));
}

DecodedWeights decoded_weight(Exec& e, const GemmCall& call, const GemmTerm& term, const GemmSpace& space) {
  const bool ahead = space.ahead && is_large(term.w) && !is_decoded(term.w);
  return {e, ahead ? call.ahead : nullptr, space.decoded};
}

void gemm_tn_tiles(Exec& e, const GemmTnCall& call) {
  Args args{{}, 1, call.out.rows, call.out.cols, call.scale, nullptr, call.out, call.out};
  args.terms[0] = {operand(call.a), operand(call.b), call.a.rows};
  launch_gemm<true, true>(e, args);
}

}  // namespace cuda

namespace {

// Of a plan that knows no addresses.
bool are_on_16_bytes(const GemmCall& call) {
  for (const GemmTerm& t : call.terms)
    if (!cuda::on_16_bytes(t.x)) return false;
  return cuda::on_16_bytes(call.y) && cuda::on_16_bytes(call.epilogue.residual);
}

}  // namespace

void gemm_cuda(Exec& e, const GemmCall& call, void* workspace) {
  const GemmPlan plan = plan_gemm(call);
  const GemmSpace space(plan, workspace);
  if (plan.on == GemmOn::multiply_adds) return cuda::gemm_fp32(e, call);
  if (plan.on == GemmOn::fused) return cuda::gemm_fused(e, call, space);
  if (plan.on == GemmOn::library && are_on_16_bytes(call)) return cuda::gemm_library(e, call, space);
  cuda::gemm_tiles(e, call, space);
}

void gemm_tn_cuda(Exec& e, const GemmTnCall& call, void* workspace) {
  const GemmPlan plan = plan_gemm(call);
  if (plan.on == GemmOn::multiply_adds) return cuda::gemm_tn_fp32(e, call);
  const bool aligned = cuda::on_16_bytes(call.a) && cuda::on_16_bytes(call.b) && cuda::on_16_bytes(call.out);
  if (plan.on == GemmOn::library && aligned)
    return cuda::gemm_tn_library(e, call, GemmSpace(plan, workspace));
  cuda::gemm_tn_tiles(e, call);
}

}  // namespace qlora
