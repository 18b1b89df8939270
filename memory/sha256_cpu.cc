// SHA-256 by the instructions of x86 CPUs (Intel's SHA extensions, programming reference of 2013): four
// rounds of two states at a time.
#include "memory/sha256_blocks.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

namespace qlora {
namespace {

#pragma GCC push_options
#pragma GCC target("sha,sse4.1,ssse3")
void blocks_by_instructions(std::array<uint32_t, 8>& state, const uint8_t* data, size_t count) {
  const __m128i bytes_reversed = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  auto* const words = reinterpret_cast<__m128i*>(state.data());
  // The instructions want a, b, e, f in one register and c, d, g, h in the other, highest first.
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xB1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1B);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xF0);
  for (; count > 0; --count, data += 64) {
    const __m128i former_abef = abef, former_cdgh = cdgh;
    __m128i w[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), bytes_reversed);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      __m128i& now = w[r % 4];
      const __m128i w1 = w[(r + 1) % 4], w2 = w[(r + 2) % 4], w3 = w[(r + 3) % 4];
      const __m128i constants =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(kSha256Round.data() + 4 * r));
      const __m128i x = _mm_add_epi32(now, constants);
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, x);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(x, 0x0E));
      now =
          _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, w1), _mm_alignr_epi8(w3, w2, 4)), w3);
    }
    abef = _mm_add_epi32(abef, former_abef);
    cdgh = _mm_add_epi32(cdgh, former_cdgh);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
}
#pragma GCC pop_options

bool has_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (b & bit_SHA) == 0) return false;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_SSE4_1) != 0 && (c & bit_SSSE3) != 0;
}

}  // namespace

Sha256Blocks sha256_blocks_of_cpu() {
  static const bool has = has_instructions();
  return has ? blocks_by_instructions : nullptr;
}

}  // namespace qlora
#else
namespace qlora {
Sha256Blocks sha256_blocks_of_cpu() { return nullptr; }
}  // namespace qlora
#endif
