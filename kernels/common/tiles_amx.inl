// Products of bf16 operands on AMX tiles (Intel SDM, TDPBF16PS), for a body in qlora::amx. Of a step's 32
// terms the even and the odd ones are two chains of multiply-adds from 0, whose sum is added to what stands
// in the tile; subnormals count as 0. A product's left operand is rows of terms; its right one panels of 32
// columns, step after step: two tiles of 16 columns, each 16 rows of the columns' pairs of terms.

using avx512::load;
using avx512::mul;
using avx512::set1;
using avx512::store;
using avx512::Vec;

inline constexpr int64_t kTileSide = 16;     // rows and fp32 columns of a tile register
inline constexpr int64_t kStepTerms = 32;    // bf16 in a tile register's row
inline constexpr int64_t kStepBytes = 2048;  // a step of a panel

inline int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }
inline int64_t steps_of(int64_t terms) { return (terms + kStepTerms - 1) / kStepTerms; }

// 32 columns of two consecutive terms, as rows of two tiles.
inline void interleave(__m512i even, __m512i odd, char* to) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_store_si512(to, _mm512_permutex2var_epi16(even, low, odd));
  _mm512_store_si512(to + 1024, _mm512_permutex2var_epi16(even, high, odd));
}

// While it lives, this thread's tile registers are all 16 rows of 64 bytes.
class TileRegisters {
 public:
  TileRegisters() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // the intrinsic says that it reads eight bytes of it
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// Rows of x that serve `steps` steps: bf16, whole steps.
struct TileRows {
  const char* data;
  int64_t stride;  // bytes
  int64_t steps;
};

// Whether the next product takes the same rows of x again. Those that pass by once are loaded with a hint
// that leaves the nearest cache to the panel.
enum class Rows { again, once };

// c[kRows * 16, kCols * 16] (+)= x w. `step` is the panel's first of the pair of tiles' columns.
template <Rows kUse, int kRows, int kCols>
inline void tiles(const TileRows* x, int64_t parts, const char* step, float* c, int64_t stride_c,
                  bool first) {
  char* at = reinterpret_cast<char*>(c);
  const int64_t stride = stride_c * 4;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, at, stride);
    if constexpr (kCols > 1) _tile_loadd(1, at + 64, stride);
    if constexpr (kRows > 1) _tile_loadd(2, at + 16 * stride, stride);
    if constexpr (kRows > 1 && kCols > 1) _tile_loadd(3, at + 16 * stride + 64, stride);
  }
  for (int64_t p = 0; p < parts; ++p) {
    const char *a = x[p].data, *b = a + 16 * x[p].stride;
    for (int64_t s = 0; s < x[p].steps; ++s, a += 64, b += 64, step += kStepBytes) {
      _tile_loadd(6, step, 64);
      if constexpr (kUse == Rows::once)
        _tile_stream_loadd(4, a, x[p].stride);
      else
        _tile_loadd(4, a, x[p].stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kCols > 1) {
        _tile_loadd(7, step + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kRows > 1) {
        if constexpr (kUse == Rows::once)
          _tile_stream_loadd(5, b, x[p].stride);
        else
          _tile_loadd(5, b, x[p].stride);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kCols > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, at, stride);
  if constexpr (kCols > 1) _tile_stored(1, at + 64, stride);
  if constexpr (kRows > 1) _tile_stored(2, at + 16 * stride, stride);
  if constexpr (kRows > 1 && kCols > 1) _tile_stored(3, at + 16 * stride + 64, stride);
  asm volatile("" ::: "memory");
}

template <Rows kUse = Rows::again>
inline void multiply(const TileRows* x, int64_t parts, const char* step, int64_t rows, int64_t cols, float* c,
                     int64_t stride_c, bool first) {
  if (rows > kTileSide)
    cols > kTileSide ? tiles<kUse, 2, 2>(x, parts, step, c, stride_c, first)
                     : tiles<kUse, 2, 1>(x, parts, step, c, stride_c, first);
  else
    cols > kTileSide ? tiles<kUse, 1, 2>(x, parts, step, c, stride_c, first)
                     : tiles<kUse, 1, 1>(x, parts, step, c, stride_c, first);
}

// Columns col .. col+16 of a bf16 matrix as rows, two terms (rows row .. row+count) a lane.
inline void pack_transposed(const ConstMat& m, int64_t row, int64_t count, int64_t col, int64_t cols,
                            char* to, int64_t stride) {
  const __mmask16 mask = avx512::first(cols);
  const auto part = [&](int64_t r) {
    return r < count ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, m.row<bf16>(row + r) + col))
                     : _mm512_setzero_si512();
  };
  Vec v[kTileSide];
  for (int64_t i = 0; i < count; i += kStepTerms, to += 64) {
#pragma GCC unroll 16
    for (int64_t p = 0; p < kTileSide; ++p)
      v[p].v =
          _mm512_castsi512_ps(_mm512_or_si512(part(i + 2 * p), _mm512_slli_epi32(part(i + 2 * p + 1), 16)));
    avx512::transpose(v);
#pragma GCC unroll 16
    for (int p = 0; p < kTileSide; ++p) _mm512_store_ps(to + p * stride, v[p].v);
  }
}
