#include <algorithm>
#include <cmath>
#include <cstdio>

#include "train/report.h"

namespace qlora {
namespace {

constexpr double kWidth = 560, kHeight = 220;                       // of the drawing, in its own units
constexpr double kLeft = 62, kRight = 12, kTop = 12, kBottom = 28;  // around the curves
constexpr size_t kBuckets = 400;

struct Range {
  double low, high, step;
};

// Bounds for an axis that holds [low, high], and a round step (1, 2 or 5 times a power of ten) between its
// ticks.
Range axis(double low, double high, double at_least) {
  if (!(low < high)) {
    const double room = low == 0 ? 1 : std::abs(low) * 0.1;
    low -= room;
    high += room;
  }
  const double raw = std::max((high - low) / 5, at_least);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (double nice : {5.0, 2.0, 1.0})
    if (nice * power >= raw * 0.999) step = nice * power;
  return {std::floor(low / step) * step, std::ceil(high / step) * step, step};
}

// The points of a curve, thinned: in each bucket of neighbours the least and the largest, in their order.
std::vector<size_t> drawn_points(const PlotSeries& s) {
  std::vector<size_t> finite, out;
  for (size_t i = 0; i < s.x.size(); ++i)
    if (std::isfinite(s.x[i]) && std::isfinite(s.y[i])) finite.push_back(i);
  if (finite.size() <= 2 * kBuckets) return finite;
  for (size_t b = 0; b < kBuckets; ++b) {
    const auto begin = finite.begin() + static_cast<int64_t>(b * finite.size() / kBuckets);
    const auto end = finite.begin() + static_cast<int64_t>((b + 1) * finite.size() / kBuckets);
    const auto [low, high] =
        std::minmax_element(begin, end, [&](size_t i, size_t j) { return s.y[i] < s.y[j]; });
    out.push_back(std::min(*low, *high));
    if (*low != *high) out.push_back(std::max(*low, *high));
  }
  return out;
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

}  // namespace

std::string short_number(double value) {
  if (!std::isfinite(value)) return "–";
  if (value == 0) return "0";
  const double size = std::abs(value);
  const char* unit = "";
  if (size >= 1e4) {
    const double factors[] = {1e12, 1e9, 1e6, 1e3};
    const char* units[] = {"T", "G", "M", "k"};
    for (int i = 0; i < 4; ++i) {
      if (size >= factors[i]) {
        value /= factors[i];
        unit = units[i];
        break;
      }
    }
  }
  char text[64];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return std::string(text) + unit;
}

std::string render_plot(const std::string& title, const std::vector<PlotSeries>& series) {
  double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
  std::vector<std::vector<size_t>> points;
  for (const PlotSeries& s : series) {
    points.push_back(drawn_points(s));
    for (size_t i : points.back()) {
      x0 = std::min(x0, s.x[i]);
      x1 = std::max(x1, s.x[i]);
      y0 = std::min(y0, s.y[i]);
      y1 = std::max(y1, s.y[i]);
    }
  }
  if (!(x0 <= x1)) return "";
  const Range x = axis(x0, x1, 1), y = axis(y0, y1, 0);
  const auto px = [&](double v) {
    return kLeft + (v - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  };
  const auto py = [&](double v) {
    return kHeight - kBottom - (v - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  };
  std::string out = "<figure class=\"plot\"><figcaption>" + html_text(title);
  for (size_t s = 0; s < series.size(); ++s)
    if (series.size() > 1 && !points[s].empty())
      out += " <span class=\"key s" + std::to_string(s) + "\">" + html_text(series[s].name) + "</span>";
  out += " <output></output></figcaption><svg viewBox=\"0 0 " + fixed(kWidth, 0) + " " + fixed(kHeight, 0) +
         "\" role=\"img\" aria-label=\"" + html_text(title) + "\">";
  for (int i = 0; i * y.step <= (y.high - y.low) * 1.0001; ++i) {
    const double value = y.low + i * y.step;
    out += "<path class=\"grid\" d=\"M" + fixed(kLeft, 0) + " " + fixed(py(value), 1) + "H" +
           fixed(kWidth - kRight, 0) + "\"/><text x=\"" + fixed(kLeft - 6, 0) + "\" y=\"" +
           fixed(py(value) + 4, 1) + "\" text-anchor=\"end\">" +
           short_number(std::abs(value) < y.step * 1e-6 ? 0 : value) + "</text>";
  }
  for (int i = 0; i * x.step <= (x.high - x.low) * 1.0001; ++i) {
    const double value = x.low + i * x.step;
    out += "<text x=\"" + fixed(px(value), 1) + "\" y=\"" + fixed(kHeight - 8, 0) +
           "\" text-anchor=\"middle\">" + short_number(value) + "</text>";
  }
  for (size_t s = 0; s < series.size(); ++s) {
    if (points[s].empty()) continue;
    std::string line, dots, data;
    for (size_t i : points[s]) {
      const std::string at = fixed(px(series[s].x[i]), 1) + " " + fixed(py(series[s].y[i]), 1);
      line += (line.empty() ? "M" : "L") + at;
      // A line of zero length with round ends is a dot.
      if (points[s].size() <= 40) dots += "M" + at + "h0";
      data += (data.empty() ? "" : ";") + fixed(px(series[s].x[i]), 1) + "," + short_number(series[s].x[i]) +
              "," + short_number(series[s].y[i]);
    }
    const std::string name = "s" + std::to_string(s);
    out += "<path class=\"line " + name + "\" d=\"" + line + "\" data-name=\"" + html_text(series[s].name) +
           "\" data-points=\"" + data + "\"/>";
    if (!dots.empty()) out += "<path class=\"dots " + name + "\" d=\"" + dots + "\"/>";
  }
  return out + "</svg></figure>\n";
}

}  // namespace qlora
