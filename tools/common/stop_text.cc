#include "tools/common/stop_text.h"

#include <algorithm>
#include <utility>

namespace qlora::tools {

std::string StopText::push(std::string_view part) {
  if (stopped_) return {};
  held_ += part;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_)
    if (!stop.empty()) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) {
    stopped_ = true;
    held_.resize(first);
    return std::exchange(held_, {});
  }
  // The longest tail that begins a stop text waits for what follows.
  size_t keep = 0;
  for (const std::string& stop : stops_)
    for (size_t n = stop.empty() ? 0 : std::min(stop.size() - 1, held_.size()); n > keep; --n)
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopText::finish() { return stopped_ ? std::string() : std::exchange(held_, {}); }

}  // namespace qlora::tools
