#include "quant/codebook.h"

#include <algorithm>
#include <cmath>

namespace qlora {
namespace {

// torch.linspace(0.1, 1, n)[k] as its vector kernel computes it: from the nearer end, multiply and add fused.
float boundary(int k, int n) {
  const float step = (1.0f - 0.1f) / static_cast<float>(n - 1);
  if (k < n / 2) return std::fma(step, static_cast<float>(k), 0.1f);
  return std::fma(-step, static_cast<float>(n - 1 - k), 1.0f);
}

// Each decade 10^-6 .. 10^0 is cut into twice as many intervals as the one below it; their midpoints are the
// entries.
std::array<float, 256> make_dynamic_map(bool with_sign) {
  constexpr float decades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::array<float, 256> map{};
  size_t at = 0;
  map[at++] = 0.0f;
  map[at++] = 1.0f;
  for (int i = 0; i < 7; ++i) {
    const int n = (1 << (with_sign ? i : i + 1)) + 1;
    for (int k = 0; k + 1 < n; ++k) {
      const float middle = decades[i] * ((boundary(k, n) + boundary(k + 1, n)) / 2.0f);
      map[at++] = middle;
      if (with_sign) map[at++] = -middle;
    }
  }
  check(at == map.size(), "the dynamic map has ", at, " entries");
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

const std::array<float, 256>& dynamic_map(bool with_sign) {
  static const std::array<float, 256> signed_map = make_dynamic_map(true);
  static const std::array<float, 256> unsigned_map = make_dynamic_map(false);
  return with_sign ? signed_map : unsigned_map;
}

}  // namespace qlora
