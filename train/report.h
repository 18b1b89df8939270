#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/io/json.h"
#include "train/metrics.h"

namespace qlora {

// One question with its answers before and after training; `wanted` and `before` may be empty.
struct ReportSample {
  std::string prompt, wanted, before, after;
};

// What report.html shows, top to bottom: headline figures, plots of the metrics, samples, settings.
struct Report {
  std::string title;
  std::vector<std::pair<std::string, std::string>> figures;  // name, value as shown
  Metrics metrics;
  std::vector<ReportSample> samples;
  Json settings = Json::object();  // a table row a key
};

// One self-contained page: no request leaves it, plots are inline SVG, light and dark follow the reader's
// setting, and without JavaScript all but the numbers under the pointer is there. Any text may stand in any
// field.
std::string render_report(const Report& report);

// A line plot, as the page has it. NaN points are gaps. At most ~800 points a series are drawn: of more, the
// least and the largest of each bucket.
struct PlotSeries {
  std::string name;
  std::vector<double> x, y;
};
std::string render_plot(const std::string& title, const std::vector<PlotSeries>& series);

// escape_html, without the control characters that have no place in HTML.
std::string html_text(std::string_view text);
// A figure as people read it: 4 significant digits, k, M, G for large ones.
std::string short_number(double value);

}  // namespace qlora
