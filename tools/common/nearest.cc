#include "tools/common/nearest.h"

#include <algorithm>
#include <cctype>
#include <climits>

namespace qlora::tools {
namespace {

constexpr size_t kLongest =
    128;  // of a name that is compared: the cost is quadratic and the text a stranger's

char fold(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

bool starts_with(std::string_view text, std::string_view head) {
  return head.size() >= 3 && text.substr(0, head.size()) == head;
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  a = a.substr(0, kLongest);
  b = b.substr(0, kLongest);
  // Three rows of the table suffice: a swap looks two rows back.
  std::vector<int> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = fold(a[i - 1]) == fold(b[j - 1]);
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) && fold(a[i - 2]) == fold(b[j - 1]))
        now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  int fewest = INT_MAX;
  for (const std::string& candidate : candidates) {
    int edits = 2 * edit_distance(name, candidate);
    // --lora-targets means --lora-target-modules: what was left out at the end costs half.
    if (starts_with(candidate, name) || starts_with(name, candidate)) edits /= 2;
    if (edits < fewest) {
      fewest = edits;
      best = candidate;
    }
  }
  return best;
}

}  // namespace qlora::tools
