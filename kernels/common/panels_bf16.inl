// What products of bf16 operands have in common, on AMX tiles and by vdpbf16ps: for a body in qlora::amx or
// qlora::avx512bf16. A product's left operand is rows of terms; its right one panels of 32 columns, step
// after step of 32 terms: two tiles of 16 columns, each 16 rows of the columns' pairs of terms.

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

// Rows of x that serve `steps` steps: bf16, whole steps.
struct TileRows {
  const char* data;
  int64_t stride;  // bytes
  int64_t steps;
};

// Whether the next product takes the same rows of x again. Those that pass by once are loaded with a hint
// that leaves the nearest cache to the panel.
enum class Rows { again, once };

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
