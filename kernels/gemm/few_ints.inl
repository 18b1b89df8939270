// Products with a bf16 x in integers. A block of x becomes integers of 16 bits times a power of two, so that
// no element that is at least 2^-7 of the block's greatest is rounded; a block of W is integers times its
// factor. Products and sums within a block are exact, in whatever order; they are scaled and added up in
// fp32.

// A block's integers are x / unit: the greatest magnitude is in [2^14, 2^15). Blocks of less than 2^-112 are
// 0. Of NaN or Inf everything is NaN.
struct IntUnit {
  float unit, inverse;
  explicit IntUnit(uint32_t greatest) {
    const uint32_t exponent = greatest >> 7;
    const bool small = exponent < 15;
    unit = greatest >= 0x7f80 ? std::numeric_limits<float>::quiet_NaN()
           : small            ? 0.f
                              : std::bit_cast<float>((exponent - 14) << 23);
    inverse = small || greatest >= 0x7f80 ? 0.f : std::bit_cast<float>((268 - exponent) << 23);
  }
};

// What is asked for beyond what is read: the time from memory.
inline constexpr int64_t kAheadBytes = 3072;

// How a row of W is blocks of integers: kElements to a block, kBytes from one block's codes to the next's,
// kTogether blocks multiplied in a step, kIntBytes of x's integers for these, of which each is within kLimit.
// An integer of W times the block's factor / kOne is a weight. kOffsets: a block has a second number, which
// multiplies the sum of x. kFactorsInside: factors lie among the codes.
template <Format F>
class IntBlocks;

template <int64_t kBlockBytes, bool kWithOffset>
class NibbleBlocks {
 public:
  static constexpr int64_t kElements = 32, kBytes = kBlockBytes, kTogether = kSide;
  static constexpr int64_t kIntBytes = 64 * kSide + 4 * kLanes;
  static constexpr bool kOffsets = kWithOffset, kFactorsInside = true;
  static bool serves(const WeightView&) { return true; }
  explicit NibbleBlocks(const WeightView& w) : w_(w), bytes_(w.cols / 32 * kBytes) {}
  const uint8_t* row(int64_t n) const { return static_cast<const uint8_t*>(w_.data) + n * bytes_; }
  int64_t row_bytes() const { return bytes_; }
  void factors(int64_t n, int64_t block, int64_t count, float* factor, float* offset) const {
    load_factors<kBytes, kOffsets>(row(n) + block * kBytes, count, factor, offset);
  }
  static Nibbles at(const uint8_t* block, int64_t count) { return load_nibbles<kBytes>(block, count); }
  static Vec products(const Nibbles& w, const uint8_t* x) {
    const auto* planes = reinterpret_cast<const int8_t*>(x);
    // Without an offset a code stands for itself less 8.
    if constexpr (kOffsets)
      return nibble_products(w, planes);
    else
      return nibble_products(w, planes, reinterpret_cast<const int32_t*>(x + 64 * kSide));
  }
  static Vec spread_factors(const float* factors, int64_t count) { return spread(factors, count); }
  static constexpr int kLimit = 127 * 256 + 127;
  static constexpr float kOne = 1;
  static void put(const int16_t* v, int64_t block, uint8_t* x) {
    constexpr int kEach = kLanes / kSide;  // lanes of a block
    const int64_t at = block % kSide;
    auto* planes = reinterpret_cast<int8_t*>(x) + 16 * at;
    for (int j = 0; j < 16; ++j) {
      planes[j] = static_cast<int8_t>((v[j] + 128) >> 8);
      planes[16 * kSide + j] = static_cast<int8_t>((v[16 + j] + 128) >> 8);
      planes[32 * kSide + j] = static_cast<int8_t>(v[j]);
      planes[48 * kSide + j] = static_cast<int8_t>(v[16 + j]);
    }
    auto* more = reinterpret_cast<int32_t*>(x + 64 * kSide) + at * kEach;
    for (int lane = 0; lane < kEach; ++lane) {
      more[lane] = 0;
      for (int j = lane * (16 / kEach); j < (lane + 1) * (16 / kEach); ++j)
        more[lane] -= 8 * (v[j] + v[16 + j]);
    }
  }

 private:
  const WeightView& w_;
  int64_t bytes_;
};
template <>
class IntBlocks<Format::q4_0> : public NibbleBlocks<18, false> {
  using NibbleBlocks<18, false>::NibbleBlocks;
};
template <>
class IntBlocks<Format::q4_1> : public NibbleBlocks<20, true> {
  using NibbleBlocks<20, true>::NibbleBlocks;
};

// Blocks of 32 bytes, `kSkipped` bytes before each.
template <int64_t kSkipped>
class ByteBlocks {
 public:
  static constexpr bool kFactorsInside = kSkipped > 0;
  static constexpr int64_t kElements = 32, kBytes = 32 + kSkipped, kTogether = 1, kIntBytes = 64;
  static constexpr bool kOffsets = false;
  static constexpr int kLimit = 32767;
  explicit ByteBlocks(const WeightView& w) : w_(w), bytes_(w.cols / 32 * kBytes) {}
  const uint8_t* row(int64_t n) const { return static_cast<const uint8_t*>(w_.data) + n * bytes_; }
  int64_t row_bytes() const { return bytes_; }
  static Bytes at(const uint8_t* block, int64_t) {
    return load_bytes(reinterpret_cast<const int8_t*>(block + kSkipped));
  }
  static Vec products(const Bytes& w, const uint8_t* x) {
    return byte_products(w, reinterpret_cast<const int16_t*>(x));
  }
  static Vec spread_factors(const float* factor, int64_t) { return set1(*factor); }
  static void put(const int16_t* v, int64_t, uint8_t* x) { std::memcpy(x, v, 64); }

 protected:
  const WeightView& w_;

 private:
  int64_t bytes_;
};
template <>
class IntBlocks<Format::q8_0> : public ByteBlocks<2> {
 public:
  using ByteBlocks<2>::ByteBlocks;
  static constexpr float kOne = 1;
  static bool serves(const WeightView&) { return true; }
  void factors(int64_t n, int64_t block, int64_t count, float* factor, float*) const {
    load_factors<34, false>(row(n) + block * 34, count, factor, nullptr);
  }
};
template <>
class IntBlocks<Format::int8> : public ByteBlocks<0> {
 public:
  using ByteBlocks<0>::ByteBlocks;
  static constexpr float kOne = 127;
  static bool serves(const WeightView& w) { return w.cols % 32 == 0; }
  void factors(int64_t n, int64_t block, int64_t count, float* factor, float*) const {
    for (int64_t i = 0, rest = w_.cols / 32 - block; i < count; i += rest, rest = w_.cols / 32, ++n) {
      const Vec absmax = set1(w_.absmax[n]);
      for (int64_t j = 0; j < rest && i + j < count; j += kLanes) store(factor + i + j, absmax);
    }
  }
};

// The codes' values as integers: 1 is such that eight products with x fill 32 bits; of fp4 it makes all of
// them integers.
template <Format F>
inline constexpr int kCodeOne = F == Format::nf4 ? 8191 : 8064;
template <Format F>
inline constexpr std::array<int16_t, 16> kCodeInts = [] {
  std::array<int16_t, 16> v{};
  for (size_t i = 0; i < 16; ++i) {
    const float value = (F == Format::nf4 ? kNf4 : kFp4)[i] * static_cast<float>(kCodeOne<F>);
    v[i] = static_cast<int16_t>(value < 0 ? value - 0.5f : value + 0.5f);
  }
  return v;
}();

// 64 elements at a time, whatever the blocks, whose scales these share. A code's value is off by 1 / 16382 of
// the block's greatest at most (fp4's are multiples of 1/192: not at all).
template <Format F>
class CodeBlocks {
 public:
  static constexpr int64_t kElements = 64, kBytes = 32, kTogether = kCodeSide;
  static constexpr int64_t kIntBytes = 128 * kCodeSide;
  static constexpr bool kOffsets = false, kFactorsInside = false;
  static constexpr int kLimit = 32767;
  static constexpr float kOne = kCodeOne<F>;
  static bool serves(const WeightView& w) { return w.cols % 64 == 0 && w.block_size % 64 == 0; }
  explicit CodeBlocks(const WeightView& w) : w_(w), table_(kCodeInts<F>.data()) {}
  const uint8_t* row(int64_t n) const { return static_cast<const uint8_t*>(w_.data) + n * w_.cols / 2; }
  int64_t row_bytes() const { return w_.cols / 2; }
  void factors(int64_t n, int64_t block, int64_t count, float* factor, float*) const {
    const int64_t per = w_.block_size / 64, first = n * (w_.cols / 64) + block;
    if (per > 1) {
      for (int64_t i = 0; i < count; ++i) factor[i] = w_.block_scale((first + i) / per);
      return;
    }
    for (int64_t i = 0; i < count;) {
      const int64_t b = first + i, shared = 256 - b % 256, left = count - i < shared ? count - i : shared;
      store(factor + i, scales(b, left));
      i += left < kLanes ? left : kLanes;
    }
  }
  Codes at(const uint8_t* codes, int64_t count) const { return load_codes(table_, codes, count); }
  static Vec products(const Codes& w, const uint8_t* x) {
    return code_products(w, reinterpret_cast<const int16_t*>(x));
  }
  static Vec spread_factors(const float* factors, int64_t count) { return spread_codes(factors, count); }
  static void put(const int16_t* v, int64_t block, uint8_t* x) {
    put_codes(v, reinterpret_cast<int16_t*>(x) + 16 * (block % kCodeSide));
  }

 private:
  // block_scale of `count` blocks, of kLanes at most, that share their second level.
  Vec scales(int64_t b, int64_t count) const {
    if (w_.absmax_codes == nullptr) return load_part(w_.absmax + b, count);
    __builtin_prefetch(w_.absmax_codes + b + kAheadBytes / kBytes);
    return add(mul(look_up_first(w_.code_map, w_.absmax_codes + b, count), set1(w_.nested_absmax[b / 256])),
               set1(w_.nested_offset));
  }
  const WeightView& w_;
  CodeTable16 table_;
};
template <>
class IntBlocks<Format::nf4> : public CodeBlocks<Format::nf4> {
  using CodeBlocks<Format::nf4>::CodeBlocks;
};
template <>
class IntBlocks<Format::fp4> : public CodeBlocks<Format::fp4> {
  using CodeBlocks<Format::fp4>::CodeBlocks;
};

// Blocks of a row that are multiplied before those after them; outputs and blocks, at most, whose factors are
// decoded together: eight rows of any blocks fill vectors, few blocks stay where the bytes are that came for
// them.
inline constexpr int64_t kIntSegment = 128, kIntChunk = 8, kIntChunkBlocks = 144;
// A row of x in a term's room, in floats from its beginning: the integers, step after step; each block's unit
// (in a row of one segment all of them for each output of a chunk, as their factors will lie); the sum of
// each block.
struct IntRoom {
  int64_t units, sums;
  bool one_segment;
  IntRoom(int64_t cols, int64_t blocks)
      : units(ceil_div(cols, 128) * 128), sums(units + units / 2 + 32), one_segment(blocks <= kIntSegment) {}
};

template <Format F>
inline void put_int_row(const WeightView& w, const bf16* x, float* to) {
  using Blocks = IntBlocks<F>;
  const int64_t count = w.cols / Blocks::kElements;
  const IntRoom room(w.cols, count);
  auto* ints = reinterpret_cast<uint8_t*>(to);
  float *units = to + room.units, *sums = to + room.sums;
  const float scale = w.scale / Blocks::kOne;
  for (int64_t b = 0; b < count; ++b, x += Blocks::kElements) {
    alignas(64) int16_t v[Blocks::kElements];
    const IntUnit unit(greatest_bits(x, Blocks::kElements));
    round_ints(x, Blocks::kElements, unit.inverse, Blocks::kLimit, v);
    Blocks::put(v, b, ints + b / Blocks::kTogether * Blocks::kIntBytes);
    units[b] = unit.unit * scale;
    if (Blocks::kOffsets) {
      int32_t sum = 0;
      for (const int16_t i : v) sum += i;
      sums[b] = unit.unit * static_cast<float>(sum) * scale;
    }
  }
  for (int64_t b = count; b < ceil_div(count, 16) * 16; ++b) sums[b] = 0;
  if (room.one_segment)
    for (int64_t r = 1; r < kIntChunk; ++r)
      std::memcpy(units + r * count, units, static_cast<size_t>(count) * sizeof(float));
}

// The segment's factors and offsets of a chunk's outputs, one after another; factors times units.
template <class Blocks, int kRows>
struct IntFactors {
  static constexpr int64_t kMost = kIntChunkBlocks + 16;
  alignas(64) float factor[kRows][kMost];
  alignas(64) float offset[Blocks::kOffsets ? kMost : 1];

  void decode(const Blocks& w, const IntRoom& room, int64_t n, int64_t outputs, int64_t begin, int64_t count,
              const float* x, int64_t x_stride) {
    const int64_t parts = room.one_segment ? 1 : outputs, each = room.one_segment ? outputs * count : count;
    for (int64_t p = 0; p < parts; ++p) {  // in order: vectors reach over a part's end
      const int64_t at = p * count;
      w.factors(n + p, begin, each, factor[0] + at, offset + (Blocks::kOffsets ? at : 0));
      for (int64_t m = kRows; m-- > 0;) {
        const float* units = x + m * x_stride + room.units + begin;
        for (int64_t i = 0; i < each; i += kLanes)
          store(factor[m] + at + i, mul(load(factor[0] + at + i), load(units + i)));
      }
    }
  }
};

// One step: sums[r][m] += the products of `together` blocks from the b-th on.
template <class Blocks, int kOutputs, int kRows>
inline void int_step(const Blocks& w, const uint8_t* codes, int64_t bytes, int64_t ahead, int64_t b,
                     int64_t together, const float* const (&factor)[kOutputs][kRows], const uint8_t* ints,
                     int64_t x_bytes, Vec (&sums)[kOutputs][kRows]) {
  const uint8_t* const x = ints + b / Blocks::kTogether * Blocks::kIntBytes;
  // Line after line, as the hardware looks further ahead then; the rows' places in it are others'.
  constexpr int64_t kStep = kOutputs * Blocks::kTogether * Blocks::kBytes;
  const uint8_t* const later = codes + ahead + b * kOutputs * Blocks::kBytes;
#pragma GCC unroll 5
  for (int64_t i = 0; i < kStep; i += 64) __builtin_prefetch(later + i);
#pragma GCC unroll 4
  for (int r = 0; r < kOutputs; ++r) {
    const uint8_t* const at = codes + r * bytes + b * Blocks::kBytes;
    const auto weights = w.at(at, together);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m)
      sums[r][m] = fma(Blocks::products(weights, x + m * x_bytes),
                       Blocks::spread_factors(factor[r][m] + b, together), sums[r][m]);
  }
}

// kOutputs of the chunk from its r0-th on: sums[r][m] += their products over one segment.
template <class Blocks, int kOutputs, int kRows>
inline void int_outputs(const Blocks& w, const uint8_t* codes, int64_t ahead, int64_t count,
                        const IntFactors<Blocks, kRows>& f, int64_t r0, const uint8_t* ints,
                        const float* x_sums, int64_t x_stride, Vec (*all)[kRows]) {
  Vec sums[kOutputs][kRows];  // in registers
  const float* factor[kOutputs][kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kOutputs; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      sums[r][m] = all[r][m];
      factor[r][m] = f.factor[m] + (r0 + r) * count;
    }
  if constexpr (Blocks::kOffsets)
    for (int64_t b = 0; b < count; b += kLanes)
#pragma GCC unroll 4
      for (int r = 0; r < kOutputs; ++r) {
        const Vec offset = load_part(f.offset + (r0 + r) * count + b, count - b);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) sums[r][m] = fma(offset, load(x_sums + m * x_stride + b), sums[r][m]);
      }
  const int64_t bytes = w.row_bytes(), x_bytes = x_stride * static_cast<int64_t>(sizeof(float));
  int64_t b = 0;
  for (; b + Blocks::kTogether <= count; b += Blocks::kTogether)
    int_step<Blocks, kOutputs, kRows>(w, codes, bytes, ahead, b, Blocks::kTogether, factor, ints, x_bytes,
                                      sums);
  if (Blocks::kTogether > 1 && b < count)
    int_step<Blocks, kOutputs, kRows>(w, codes, bytes, ahead, b, count - b, factor, ints, x_bytes, sums);
#pragma GCC unroll 4
  for (int r = 0; r < kOutputs; ++r)
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) all[r][m] = sums[r][m];
}

// sums[r][m] += w[n + r, :] x[m, :] for some outputs. While a chunk of them is multiplied the next one's
// factors are on their way: their codes come with them.
template <Format F, int kRows>
inline void few_ints(const WeightView& w, int64_t n, int64_t outputs, const float* x, int64_t x_stride,
                     Vec (*sums)[kRows]) {
  using Blocks = IntBlocks<F>;
  // One row's outputs go one after another: a core reads most where it reads on and on.
  constexpr int kOutputs = kRows == 1 ? 1 : few_side_by_side(kRows);
  const Blocks blocks(w);
  const int64_t all = w.cols / Blocks::kElements, bytes = blocks.row_bytes();
  const IntRoom room(w.cols, all);
  IntFactors<Blocks, kRows> factors[2];
  for (int64_t begin = 0; begin < all; begin += kIntSegment) {
    const int64_t count = all - begin < kIntSegment ? all - begin : kIntSegment;
    const int64_t together = std::clamp<int64_t>(kIntChunkBlocks / count, 1, kIntChunk);
    // Where factors lie among the codes, decoding them reads a chunk beyond the one that is multiplied.
    const int64_t ahead = kAheadBytes + (Blocks::kFactorsInside ? 2 * together * bytes : 0);
    const auto* ints = reinterpret_cast<const uint8_t*>(x) + begin / Blocks::kTogether * Blocks::kIntBytes;
    const auto decode = [&](int64_t r) {
      factors[r / together % 2].decode(blocks, room, n + r, std::min(together, outputs - r), begin, count, x,
                                       x_stride);
    };
    decode(0);
    for (int64_t chunk = 0; chunk < outputs; chunk += together) {
      if (chunk + together < outputs) decode(chunk + together);
      const IntFactors<Blocks, kRows>& f = factors[chunk / together % 2];
      const uint8_t* const codes = blocks.row(n + chunk) + begin * Blocks::kBytes;
      const int64_t end = std::min(together, outputs - chunk);
      int64_t r = 0;
      for (; r + kOutputs <= end; r += kOutputs)
        int_outputs<Blocks, kOutputs, kRows>(blocks, codes + r * bytes, ahead, count, f, r, ints,
                                             x + room.sums + begin, x_stride, sums + chunk + r);
      for (; r < end; ++r)
        int_outputs<Blocks, 1, kRows>(blocks, codes + r * bytes, ahead, count, f, r, ints,
                                      x + room.sums + begin, x_stride, sums + chunk + r);
    }
  }
}
