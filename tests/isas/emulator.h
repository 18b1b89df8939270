#pragma once
// The instructions of AMX and AVX512_BF16 that bodies use, done by AVX-512 as the Intel SDM defines them
// (volume 2: TDPBF16PS, VDPBF16PS, VCVTNE2PS2BF16, LDTILECFG), to the bit but for the payload of NaNs. What
// is compiled after this header has these in the place of the intrinsics. Unlike the CPU's, loads and stores
// are seen by sanitizers, and a tile's wrong shape is an error of this program.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "kernels/common/intrinsics.h"
#include "memory/error.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace qlora::emulated {

inline std::atomic<int64_t> products{0};  // instructions that multiplied

// Subnormals count as 0 and become 0, rounding is to nearest even, while it lives. (MXCSR; the instructions
// do not look at it.) What computes is called, never inlined: the compiler knows nothing of this.
class Flushing {
 public:
  Flushing() { _mm_setcsr(0x9fc0); }
  ~Flushing() { _mm_setcsr(former_); }
  Flushing(const Flushing&) = delete;

 private:
  unsigned former_ = _mm_getcsr();
};

// The first and the second elements of pairs of bf16, as fp32.
inline __m512 low_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 high_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)));
}

__attribute__((noinline)) inline void multiply_pairs(float* c, const void* a, const void* b) {
  const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
  const __m512 sum = _mm512_fmadd_ps(high_of(x), high_of(y), _mm512_loadu_ps(c));
  _mm512_storeu_ps(c, _mm512_fmadd_ps(low_of(x), low_of(y), sum));
}
inline __m512 dpbf16(__m512 c, __m512bh a, __m512bh b) {
  float sum[16];
  _mm512_storeu_ps(sum, c);
  ++products;
  const Flushing flushing;
  multiply_pairs(sum, &a, &b);
  return _mm512_loadu_ps(sum);
}

// bf16 in the lower halves of lanes.
inline __m512i rounded(__m512 a) {
  const __m512i u = _mm512_castps_si512(a), upper = _mm512_srli_epi32(u, 16);
  const __m512i up =
      _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
  __m512i bits = _mm512_srli_epi32(_mm512_add_epi32(u, up), 16);
  bits = _mm512_mask_or_epi32(bits, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), upper, _mm512_set1_epi32(0x40));
  const __mmask16 subnormal = _mm512_testn_epi32_mask(u, _mm512_set1_epi32(0x7f800000));
  return _mm512_mask_and_epi32(bits, subnormal, upper, _mm512_set1_epi32(0x8000));
}
inline __m256bh to_bf16(__m512 a) { return (__m256bh)_mm512_cvtepi32_epi16(rounded(a)); }
inline __m512bh to_bf16(__m512 high, __m512 low) {
  const __m512i lower = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(rounded(low)));
  return (__m512bh)_mm512_inserti64x4(lower, _mm512_cvtepi32_epi16(rounded(high)), 1);
}

// One thread's tile registers.
struct Tile {
  int rows = 0, row_bytes = 0;
  alignas(64) uint8_t row[16][64] = {};
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline Tile& tile(int t) {
  check(configured && t >= 0 && t < 8, "emulated AMX: tile ", t, " without a configuration");
  return tiles[t];
}

inline void load_config(const void* p) {
  uint8_t bytes[64];
  std::memcpy(bytes, p, sizeof bytes);
  check(bytes[0] == 1 && bytes[1] == 0, "emulated AMX: palette ", int(bytes[0]), ", first row ",
        int(bytes[1]));
  for (int i = 2; i < 16; ++i) check(bytes[i] == 0, "emulated AMX: a reserved byte of the configuration");
  for (int t = 0; t < 16; ++t) {
    const int row_bytes = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, rows = bytes[48 + t];
    check(t < 8 ? row_bytes <= 64 && rows <= 16 && (row_bytes == 0) == (rows == 0) : row_bytes + rows == 0,
          "emulated AMX: tile ", t, " of ", rows, " rows of ", row_bytes, " bytes");
    if (t < 8) tiles[t] = {rows, row_bytes};
  }
  configured = true;
}
inline void release() { configured = false; }
inline void zero(int t) { std::memset(tile(t).row, 0, sizeof tiles[t].row); }
inline void load(int t, const void* base, int64_t stride) {
  zero(t);
  for (int r = 0; r < tiles[t].rows; ++r)
    std::memcpy(tiles[t].row[r], static_cast<const char*>(base) + r * stride,
                static_cast<size_t>(tiles[t].row_bytes));
}
inline void store(int t, void* base, int64_t stride) {
  const Tile& from = tile(t);
  for (int r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<char*>(base) + r * stride, from.row[r], static_cast<size_t>(from.row_bytes));
}

__attribute__((noinline)) inline void multiply_tiles(Tile& c, const Tile& a, const Tile& b) {
  const __mmask16 cols = static_cast<__mmask16>((1u << c.row_bytes / 4) - 1);
  for (int m = 0; m < c.rows; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < a.row_bytes / 4; ++k) {
      int32_t pair;
      std::memcpy(&pair, a.row[m] + 4 * k, sizeof pair);
      const __m512i x = _mm512_set1_epi32(pair), y = _mm512_load_si512(b.row[k]);
      even = _mm512_fmadd_ps(low_of(x), low_of(y), even);
      odd = _mm512_fmadd_ps(high_of(x), high_of(y), odd);
    }
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(c.row[m]), _mm512_add_ps(even, odd));
    _mm512_store_ps(c.row[m], _mm512_maskz_mov_ps(cols, sum));
  }
}
inline void multiply(int c, int a, int b) {
  check(c != a && c != b && a != b && tile(c).rows == tile(a).rows &&
            tiles[a].row_bytes == 4 * tile(b).rows && tiles[c].row_bytes == tiles[b].row_bytes &&
            tiles[c].row_bytes % 4 == 0,
        "emulated AMX: tiles ", c, " += ", a, " ", b, " do not fit each other");
  ++products;
  const Flushing flushing;
  multiply_tiles(tiles[c], tiles[a], tiles[b]);
}

}  // namespace qlora::emulated
#pragma GCC pop_options

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(p) ::qlora::emulated::load_config(p)
#define _tile_release() ::qlora::emulated::release()
#define _tile_zero(t) ::qlora::emulated::zero(t)
#define _tile_loadd(t, base, stride) ::qlora::emulated::load(t, base, stride)
#define _tile_stream_loadd(t, base, stride) ::qlora::emulated::load(t, base, stride)
#define _tile_stored(t, base, stride) ::qlora::emulated::store(t, base, stride)
#define _tile_dpbf16ps(c, a, b) ::qlora::emulated::multiply(c, a, b)
#define _mm512_dpbf16_ps(c, a, b) ::qlora::emulated::dpbf16(c, a, b)
#define _mm512_cvtneps_pbh(a) ::qlora::emulated::to_bf16(a)
#define _mm512_cvtne2ps_pbh(high, low) ::qlora::emulated::to_bf16(high, low)
#endif
