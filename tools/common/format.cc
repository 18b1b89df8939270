#include "tools/common/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace qlora::tools {
namespace {

template <class... Args>
std::string print(const char* format, Args... args) {
  char text[64];
  std::snprintf(text, sizeof text, format, args...);
  return text;
}

}  // namespace

std::string format_bytes(uint64_t bytes) {
  static const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return print("%llu B", static_cast<unsigned long long>(bytes));
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.95 would be printed as 1024.0: it belongs to the next unit.
  while (value >= 1023.95 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return print("%.1f %s", value, units[unit]);
}

std::string format_count(int64_t count) {
  std::string text = std::to_string(count);
  const std::ptrdiff_t first = count < 0 ? 1 : 0;
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > first; at -= 3)
    text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e10) return "?";
  const auto whole = static_cast<long long>(seconds + 0.5);
  const int s = static_cast<int>(whole % 60), m = static_cast<int>(whole / 60 % 60);
  const long long hours = whole / 3600;
  if (hours >= 24) return print("%lldd %02d:%02d:%02d", hours / 24, static_cast<int>(hours % 24), m, s);
  if (hours > 0) return print("%lld:%02d:%02d", hours, m, s);
  return print("%d:%02d", m, s);
}

std::string format_value(double value) {
  const double size = std::fabs(value);
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  if (size == 0) return "0";
  if (size < 1e-4 || size >= 1e6) return print("%.3e", value);
  return print("%.*f", std::max(0, 3 - static_cast<int>(std::floor(std::log10(size)))), value);
}

}  // namespace qlora::tools
