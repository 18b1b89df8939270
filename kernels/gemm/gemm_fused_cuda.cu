#include <algorithm>

#include "kernels/cuda/decode.h"
#include "kernels/gemm/gemm_cuda.h"

// Few rows by 4-bit weights: a block has 64 columns of the output, decodes their codes in registers and
// multiplies at once. Weights are read once, so memory bounds it, not arithmetic.
namespace qlora::cuda {
namespace {

// Warps are 2 along the columns x 4 along k. A step along k is a slice of 32 for each of these four; of a
// term that is not codes it is one slice, for one of them. A slice is two products of 16, whose sums may run
// in any order as long as both sides have the same: lane c of four has elements 8 c to 8 c + 7, as x lies and
// as a word of codes holds them.
constexpr int kCols = 64, kWarpCols = 32, kSlice = 32, kSlices = kGemmStep / kSlice, kTiles = kWarpCols / 8;

// Parts of a stage, in units of 16 bytes. Rows are a bit longer than they need be, for the banks.
constexpr int kRowUnits = kGemmStep / 8 + 4;  // of x
constexpr int kCodeUnits = kSlices + 1;       // of the codes of 128 k; of 32 k in bf16
constexpr int kCodesUnits = kCols * kCodeUnits, kScaleUnits = kCols * kSlices / 4;
constexpr int kSumStride = kCols + 4;

struct alignas(16) Sixteen {
  uint32_t words[4];
};

struct Term {
  const bf16* x;
  int64_t stride, k;
  Weight w;
  int block_shift;  // codes: of the block's size
  bool on_16;       // x: rows begin on 16 bytes
  bool codes;       // copied as they are; else decoded one by one
};

struct Args {
  Term terms[kMostGemmTerms];
  int64_t count, steps, m, n;
  int splits;
  float* parts;  // [splits, m, n] where there are more than one
  const float* bias;
  ConstMat residual;
  Mat y;
};

// kTransposed: w lies as [n, k], else [k, n].
template <int kRows, int kStages, bool kTransposed>
struct FusedKernel {
  static constexpr int kThreads = 256, kPieces = kRows / 16, kBlocks = kRows == 16 ? 2 : 1;
  static constexpr int kUnits = kRows * kRowUnits + kCodesUnits + kScaleUnits;  // of a stage
  static constexpr int kValues = 16 * kMostGemmTerms;
  static constexpr size_t kShared = kValues * sizeof(float) + size_t{kStages} * kUnits * 16;
  static_assert(kSlices * kRows * kSumStride * sizeof(float) <= size_t{kStages} * kUnits * 16);
  static_assert(kThreads == kCols * kSlices);  // a scale each
  Args args;

  // The stages, by what lies in them.
  struct Stages {
    Shared<Sixteen> units;
    Shared<uint32_t> words;
    Shared<uint16_t> halves;
    Shared<bf16> elements;
    Shared<float> floats;
    template <class T>
    QLORA_DEVICE static Shared<T> as(SharedMemory rest) {
      return rest.take<T>(kStages * kUnits * 16 / static_cast<int>(sizeof(T)));
    }
    QLORA_DEVICE explicit Stages(SharedMemory rest)
        : units(as<Sixteen>(rest)),
          words(as<uint32_t>(rest)),
          halves(as<uint16_t>(rest)),
          elements(as<bf16>(rest)),
          floats(as<float>(rest)) {}
  };
  // Where a stage's parts begin, in units.
  QLORA_DEVICE static int x_at(int stage) { return stage * kUnits; }
  QLORA_DEVICE static int codes_at(int stage) { return x_at(stage) + kRows * kRowUnits; }
  QLORA_DEVICE static int scales_at(int stage) { return codes_at(stage) + kCodesUnits; }

  // A step along k: its term and the place in it.
  struct Step {
    int term = 0;
    int64_t k = 0;
  };
  QLORA_DEVICE int64_t length(const Step& s) const { return args.terms[s.term].codes ? kGemmStep : kSlice; }
  QLORA_DEVICE void to_next(Step& s) const {
    s.k += length(s);
    to_term(s);
  }
  QLORA_DEVICE void to_term(Step& s) const {
    while (s.term < args.count && s.k >= args.terms[s.term].k) {  // (a term may be empty)
      ++s.term;
      s.k = 0;
    }
  }
  QLORA_DEVICE Step step_at(int64_t index) const {
    Step s;
    for (to_term(s); index > 0; to_term(s)) {
      const int64_t left = (args.terms[s.term].k + length(s) - 1) / length(s);
      const int64_t taken = index < left ? index : left;
      s.k = taken * length(s);
      index -= taken;
    }
    return s;
  }

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> values = shared.take<float>(kValues);
    const Stages stages(shared);
    const int tiles_m = static_cast<int>((args.m + kRows - 1) / kRows);
    const int64_t m0 = block_x() % tiles_m * kRows, n0 = block_x() / tiles_m * kCols;
    for (int i = thread(); i < 16 * args.count; i += kThreads) values[i] = args.terms[i / 16].w.codes[i % 16];

    const int64_t first = args.steps * block_y() / args.splits;
    const int steps = static_cast<int>(args.steps * (block_y() + 1) / args.splits - first);
    Step now = step_at(first), next = now;
    float sums[kPieces][kTiles][4] = {};
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) finish_load(stages, s, next, load(stages, s, next, m0, n0));
      commit_copies();
    }
    for (int s = 0; s < steps; ++s) {
      wait_copies<kStages - 2>();
      barrier();  // step s is there for all, and nobody reads step s - 1 any more
      const bool more = s + kStages - 1 < steps;
      const int stage = (s + kStages - 1) % kStages;
      Scale scale;
      if (more) scale = load(stages, stage, next, m0, n0);
      commit_copies();
      multiply(stages, values, s % kStages, now, sums);
      if (more) finish_load(stages, stage, next, scale);  // (its loads are long under way)
      to_next(now);
    }
    barrier();
    store(stages.floats, sums, m0, n0);
  }

  // A block's scale as it is stored.
  struct Scale {
    float absmax = 0;
    uint8_t code = 0;
    bool nested = false;
  };

  // Asks for x and the codes of a step, or decodes what is no codes.
  QLORA_DEVICE Scale load(const Stages& stages, int stage, const Step& s, int64_t m0, int64_t n0) const {
    const Term& t = args.terms[s.term];
    load_x(stages, x_at(stage), t, s.k, m0);
    if (!t.codes) {
      load_elements(stages.elements.from(codes_at(stage) * 8), t.w, s.k, t.k, n0);
      return {};
    }
    load_codes(stages.units, codes_at(stage), t, s.k, n0);
    return load_scale(t, s.k, n0);
  }
  // Once the scale has come. Ends the step.
  QLORA_DEVICE void finish_load(const Stages& stages, int stage, Step& s, const Scale& scale) const {
    const Term& t = args.terms[s.term];
    if (t.codes) {
      float f = scale.absmax;
      if (scale.nested) {
        const float product = t.w.w.code_map[scale.code] * scale.absmax;
        f = product + t.w.w.nested_offset;
      }
      stages.floats[scales_at(stage) * 4 + thread()] = f;
    }
    to_next(s);
  }

  QLORA_DEVICE void load_x(const Stages& stages, int at, const Term& t, int64_t k, int64_t m0) const {
    const int eights = t.codes ? kGemmStep / 8 : kSlice / 8;
    for (int i = thread(); i < kRows * eights; i += kThreads) {
      const int row = i / eights, eight = i % eights, to = at + row * kRowUnits + eight;
      const int64_t left = m0 + row < args.m ? t.k - (k + eight * 8) : 0;
      const int count = left <= 0 ? 0 : left < 8 ? static_cast<int>(left) : 8;
      const bf16* from = t.x + (count > 0 ? (m0 + row) * t.stride + k + eight * 8 : 0);
      if (t.on_16) {
        copy_async16(stages.units, to, from, count * 2);
      } else {
        for (int j = 0; j < 8; ++j) stages.elements[to * 8 + j] = j < count ? from[j] : from_float<bf16>(0.f);
      }
    }
  }

  // Codes as they lie, 32 to a unit: rows of 128 (transposed), or 128 rows of 64. Of these, rows that lanes
  // of one warp read together follow each other: row r is at place_of(r).
  QLORA_DEVICE static int place_of(int row) { return row % 8 * (kGemmStep / 8) + row / 8; }
  QLORA_DEVICE void load_codes(Shared<Sixteen> units, int at, const Term& t, int64_t k, int64_t n0) const {
    const auto* const data = static_cast<const uint8_t*>(t.w.w.data);
    const int i = thread();  // a unit each
    const int row = kTransposed ? i / kSlices : i / 2, piece = kTransposed ? i % kSlices : i % 2;
    const int64_t r = (kTransposed ? n0 : k) + row, c = (kTransposed ? k : n0) + piece * kSlice;
    const bool inside = r < t.w.w.rows && c < t.w.w.cols;  // (columns are of whole slices)
    copy_async16(units, at + (kTransposed ? row * kCodeUnits + piece : place_of(row) * 2 + piece),
                 data + (inside ? (r * t.w.w.cols + c) / 2 : 0), inside ? 16 : 0);
  }

  // A thread has one, where multiply looks for it: of 64 rows for each slice in turn, or of 128 rows for each
  // half of the columns.
  QLORA_DEVICE Scale load_scale(const Term& t, int64_t k, int64_t n0) const {
    const WeightView& w = t.w.w;
    const int i = thread(), place = i % kGemmStep;
    const int64_t r =
        kTransposed ? n0 + i % kCols : k + place % (kGemmStep / 8) * 8 + place / (kGemmStep / 8);
    const int64_t c = kTransposed ? k + i / kCols * kSlice : n0 + i / kGemmStep * kWarpCols;
    if (r >= w.rows || c >= w.cols) return {};
    const int64_t block = (r * w.cols + c) >> t.block_shift;
    if (w.absmax_codes == nullptr) return {w.absmax[block], 0, false};
    return {w.nested_absmax[block / 256], w.absmax_codes[block], true};
  }

  // What is no codes: 64 columns of 32 k, as bf16.
  QLORA_DEVICE void load_elements(Shared<bf16> tile, const Weight& w, int64_t k, int64_t end,
                                  int64_t n0) const {
    for (int i = thread(); i < kCols * kSlice; i += kThreads) {
      const int n = kTransposed ? i / kSlice : i % kCols, j = kTransposed ? i % kSlice : i / kCols;
      float f = 0;
      if (n0 + n < args.n && k + j < end)
        f = kTransposed ? decode(w, n0 + n, k + j) : decode(w, k + j, n0 + n);
      tile[n * kCodeUnits * 8 + j] = from_float<bf16>(f);
    }
  }

  // Column of the warp that is column nu of a product's tile.
  QLORA_DEVICE static int column(int tile, int nu) {
    return kTransposed ? tile * 8 + nu : nu * kTiles + tile;
  }

  QLORA_DEVICE void multiply(const Stages& stages, Shared<float> values, int stage, const Step& s,
                             float (&sums)[kPieces][kTiles][4]) const {
    const Term& t = args.terms[s.term];
    const int along_k = warp() / 2, n0 = warp() % 2 * kWarpCols, c = lane() % 4, g = lane() / 4;
    if (!t.codes && s.k / kSlice % kSlices != along_k) return;
    uint32_t b[kTiles][4];  // elements 8 c to 8 c + 7 of a column each
    if (!t.codes) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const Sixteen eight = stages.units[codes_at(stage) + (n0 + column(j, g)) * kCodeUnits + c];
        for (int p = 0; p < 4; ++p) b[j][p] = eight.words[p];
      }
    } else if constexpr (kTransposed) {
      decode_rows(stages, values.from(s.term * 16), stage, along_k, n0, t.w.w.scale, b);
    } else {
      decode_columns(stages, values.from(s.term * 16), stage, along_k, n0, t.w.w.scale, b);
    }
    const int x = x_at(stage) + g * kRowUnits + (t.codes ? along_k * 4 : 0) + c;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const Sixteen low = stages.units[x + i * 16 * kRowUnits],
                    high = stages.units[x + (i * 16 + 8) * kRowUnits];
      const uint32_t first[4] = {low.words[0], high.words[0], low.words[1], high.words[1]},
                     second[4] = {low.words[2], high.words[2], low.words[3], high.words[3]};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        mma_bf16(sums[i][j], first, b[j][0], b[j][1]);
        mma_bf16(sums[i][j], second, b[j][2], b[j][3]);
      }
    }
  }

  // A word is eight elements of one column; the first of a byte is in its high half.
  QLORA_DEVICE void decode_rows(const Stages& stages, Shared<float> values, int stage, int slice, int n0,
                                float times, uint32_t (&b)[kTiles][4]) const {
    const int c = lane() % 4, g = lane() / 4;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int n = n0 + column(j, g);
      const uint32_t word = stages.words[(codes_at(stage) + n * kCodeUnits) * 4 + slice * 4 + c];
      const float scale = stages.floats[scales_at(stage) * 4 + slice * kCols + n];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const uint32_t byte = word >> (8 * p) & 255;
        b[j][p] = pack_bf16(values[static_cast<int>(byte >> 4)] * scale * times,
                            values[static_cast<int>(byte & 15)] * scale * times);
      }
    }
  }

  // Four columns of one row are a half word: a lane takes it of its eight rows, and has a column in each
  // tile.
  QLORA_DEVICE void decode_columns(const Stages& stages, Shared<float> values, int stage, int slice, int n0,
                                   float times, uint32_t (&b)[kTiles][4]) const {
    const int c = lane() % 4, g = lane() / 4;
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      float pair[2][kTiles];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = place_of(slice * kSlice + c * 8 + p * 2 + i);
        const uint32_t half = stages.halves[(codes_at(stage) + place * 2) * 8 + n0 / 4 + g];
        const float scale = stages.floats[scales_at(stage) * 4 + n0 / kWarpCols * kGemmStep + place];
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
          pair[i][j] = values[static_cast<int>(half >> (j / 2 * 8 + (1 - j % 2) * 4) & 15)] * scale * times;
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) b[j][p] = pack_bf16(pair[0][j], pair[1][j]);
    }
  }

  // The four sums along k, added in order.
  QLORA_DEVICE void store(Shared<float> floats, const float (&sums)[kPieces][kTiles][4], int64_t m0,
                          int64_t n0) const {
    const int along_k = warp() / 2, from = warp() % 2 * kWarpCols;
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const int row = i * 16 + lane() / 4 + v / 2 * 8;
          const int col = from + column(j, lane() % 4 * 2 + v % 2);
          floats[(along_k * kRows + row) * kSumStride + col] = sums[i][j][v];
        }
    barrier();
    for (int i = thread(); i < kRows * kCols; i += kThreads) {
      const int row = i / kCols, col = i % kCols;
      const int64_t m = m0 + row, n = n0 + col;
      if (m >= args.m || n >= args.n) continue;
      float sum = floats[row * kSumStride + col];
      for (int s = 1; s < kSlices; ++s) sum += floats[(s * kRows + row) * kSumStride + col];
      if (args.splits > 1)
        args.parts[(block_y() * args.m + m) * args.n + n] = sum;
      else
        finish(args, m, n, sum);
    }
  }

  QLORA_DEVICE static void finish(const Args& args, int64_t m, int64_t n, float sum) {
    if (args.bias != nullptr) sum += args.bias[n];
    if (args.residual.data != nullptr) sum += element(args.residual, m, n);
    set_element(args.y, m, n, sum);
  }
};

// The parts of k, added in order.
struct PartsKernel {
  static constexpr int kThreads = 256;
  const float* parts;
  int splits;
  const float* bias;
  ConstMat residual;
  Mat y;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t m = block_y(), n = int64_t{block_x()} * kThreads + thread();
    if (n >= y.cols) return;
    float sum = parts[m * y.cols + n];
    for (int s = 1; s < splits; ++s) sum += parts[(s * y.rows + m) * y.cols + n];
    if (bias != nullptr) sum += bias[n];
    if (residual.data != nullptr) sum += element(residual, m, n);
    set_element(y, m, n, sum);
  }
};

int shift_of(int block_size) {
  int shift = 0;
  while (1 << shift < block_size) ++shift;
  return shift;
}

// Of 16 rows two blocks fit into a consumer card's multiprocessor; of 64 one does.
template <int kRows, int kStages>
void launch_fused(Exec& e, const Args& args, bool transposed) {
  const Grid grid{ceil_div(args.m, kRows) * ceil_div(args.n, kCols), args.splits};
  using Transposed = FusedKernel<kRows, kStages, true>;
  using Straight = FusedKernel<kRows, kStages, false>;
  transposed ? launch(e, grid, Transposed::kShared, Transposed{args})
             : launch(e, grid, Straight::kShared, Straight{args});
}

}  // namespace

void gemm_fused(Exec& e, const GemmCall& call, const GemmSpace& space) {
  Args args{{},
            0,
            gemm_steps(call),
            call.y.rows,
            call.y.cols,
            gemm_splits(call, call.y.rows),
            reinterpret_cast<float*>(space.sums),
            call.epilogue.bias,
            call.epilogue.residual,
            call.y};
  for (const GemmTerm& t : call.terms) {
    check(args.count < kMostGemmTerms, "gemm: more than ", kMostGemmTerms, " terms");
    args.terms[args.count++] = {
        static_cast<const bf16*>(t.x.data), t.x.stride,       t.x.cols,        Weight(t.w),
        shift_of(t.w.block_size),           on_16_bytes(t.x), reads_codes(t.w)};
  }
  if (args.m <= 16)
    launch_fused<16, 4>(e, args, call.transposed_w);
  else
    launch_fused<64, 3>(e, args, call.transposed_w);
  if (args.splits > 1)
    launch(e, {ceil_div(args.n, PartsKernel::kThreads), args.m}, 0,
           PartsKernel{args.parts, args.splits, args.bias, args.residual, args.y});
}

}  // namespace qlora::cuda
