#include "kernels/common/code_table.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "memory/error.h"

namespace qlora {

CodeTable make_code_table(const std::array<float, 256>& map) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CodeTable t{};
  // The search path of nearest_entry always ends on an even code: a tie goes there.
  std::array<float, 256> border{};
  for (size_t k = 0; k < 255; ++k) {
    const float middle = (map[k + 1] + map[k]) * 0.5f;
    border[k] = k % 2 == 0 ? std::nextafter(middle, infinity) : middle;
  }
  border[255] = infinity;
  const auto code = [&](float x) {
    return static_cast<uint16_t>(std::upper_bound(border.begin(), border.end() - 1, x) - border.begin());
  };
  const auto zero = static_cast<uint16_t>(std::find(map.begin(), map.end(), 0.0f) - map.begin());
  const auto highest_negative = static_cast<uint16_t>(zero > 0 ? zero - 1 : 0);
  for (int32_t bin = 0; bin < CodeTable::kBins; ++bin) {
    const uint32_t bits = static_cast<uint32_t>(bin + CodeTable::kBelow) << 16;
    const float low = bin == 0 ? 0.0f : std::bit_cast<float>(bits);
    const float high = bin == CodeTable::kBins - 1 ? std::numeric_limits<float>::max()
                                                   : std::bit_cast<float>(bits + 0xffffu);
    check(code(high) - code(low) <= 1 && code(-low) - code(-high) <= 1, "code table: two borders in bin ",
          bin);
    t.slot[bin] = code(low);
    t.slot[bin + CodeTable::kBins] = static_cast<uint16_t>(256 + std::min(code(-high), highest_negative));
  }
  for (size_t k = 0; k < 256; ++k) {
    t.next[k] = border[k];
    t.next[k + 256] = k < highest_negative ? border[k] : infinity;
  }
  return t;
}

}  // namespace qlora
