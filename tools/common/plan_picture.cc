#include <algorithm>
#include <array>
#include <cstdio>

#include "tools/common/format.h"
#include "tools/common/plan.h"

namespace qlora::tools {
namespace {

constexpr int kWidth = 960, kHeight = 480, kLeft = 70, kRight = 200, kTop = 40, kBottom = 40;
constexpr int kColumns = 600;  // events that share a column show their largest

struct Layer {
  std::string name;
  const char* colour;
  std::vector<double> bytes;  // a column each
};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (static_cast<unsigned char>(c) >= 32)
      out += c;
  }
  return out;
}

std::string fixed(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", v);
  return text;
}

// Bytes of one region at each column: the sum at the column's event with the most of all regions live.
std::vector<Layer> layers_of(const Engine& engine) {
  static constexpr std::array<std::pair<Region, const char*>, 4> kShown = {{{Region::activations, "#4c78a8"},
                                                                            {Region::workspace, "#f58518"},
                                                                            {Region::logits, "#e45756"},
                                                                            {Region::staging, "#b279a2"}}};
  const Trace& t = engine.training_trace();
  const auto events = static_cast<size_t>(t.now);
  std::array<std::vector<double>, kShown.size()> live;
  for (size_t r = 0; r < kShown.size(); ++r) {
    std::vector<double> change(events + 1, 0);
    for (const Span& s : t.spans) {
      if (s.region != kShown[r].first) continue;
      change[static_cast<size_t>(s.born)] += static_cast<double>(s.bytes);
      if (s.died != Trace::kForever) change[static_cast<size_t>(s.died)] -= static_cast<double>(s.bytes);
    }
    for (size_t i = 1; i < change.size(); ++i) change[i] += change[i - 1];
    live[r] = std::move(change);
  }
  const size_t columns = std::min<size_t>(kColumns, std::max<size_t>(1, events));
  std::vector<Layer> out;
  double resident = 0;  // all that is there from the first event to the last
  for (const PlanRegion& r : engine.plan().regions) resident += static_cast<double>(r.bytes);
  resident -= static_cast<double>(t.peak_live_bytes());
  out.push_back({"process, base, adapter, optimizer", "#9d9d9d", std::vector<double>(columns, resident)});
  for (size_t r = 0; r < kShown.size(); ++r)
    out.push_back({name_of(kShown[r].first), kShown[r].second, std::vector<double>(columns, 0)});
  for (size_t c = 0; c < columns; ++c) {
    size_t best = c * events / columns;
    double most = -1;
    for (size_t i = best; i < std::max(best + 1, (c + 1) * events / columns) && i < events + 1; ++i) {
      double sum = 0;
      for (const auto& l : live) sum += l[i];
      if (sum > most) most = sum, best = i;
    }
    for (size_t r = 0; r < kShown.size(); ++r) out[r + 1].bytes[c] = live[r][best];
  }
  return out;
}

}  // namespace

std::string plan_picture(const Engine& engine, const std::string& title) {
  const EnginePlan& plan = engine.plan();
  const std::vector<Layer> layers = layers_of(engine);
  const size_t columns = layers[0].bytes.size();
  const bool shows_budget = plan.budget_bytes < 2 * plan.total_bytes;
  const double top = 1.05 * static_cast<double>(shows_budget ? std::max(plan.total_bytes, plan.budget_bytes)
                                                             : plan.total_bytes);
  const auto x = [&](double c) {
    return kLeft + c * (kWidth - kLeft - kRight) / static_cast<double>(columns);
  };
  const auto y = [&](double b) { return kHeight - kBottom - b / top * (kHeight - kTop - kBottom); };
  std::string svg =
      cat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", kWidth, " ", kHeight,
          "\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" "
          "fill=\"#fff\"/>\n<text x=\"",
          kLeft, "\" y=\"20\" font-size=\"15\">", escaped(title), ": ", format_bytes(plan.total_bytes),
          " at the peak, activations ", escaped(plan.choices()), "</text>\n");
  std::vector<double> below(columns, 0);
  for (size_t l = 0; l < layers.size(); ++l) {
    std::string path, back;
    for (size_t c = 0; c < columns; ++c) {
      const double up = below[c] + layers[l].bytes[c];
      path += (c == 0 ? "M" : "L") + fixed(x(static_cast<double>(c))) + " " + fixed(y(up)) + "L" +
              fixed(x(static_cast<double>(c) + 1)) + " " + fixed(y(up));
      back.insert(0, "L" + fixed(x(static_cast<double>(c) + 1)) + " " + fixed(y(below[c])) + "L" +
                         fixed(x(static_cast<double>(c))) + " " + fixed(y(below[c])));
      below[c] = up;
    }
    const double most = *std::max_element(layers[l].bytes.begin(), layers[l].bytes.end());
    if (most == 0) continue;
    svg +=
        cat("<path fill=\"", layers[l].colour, "\" d=\"", path, back, "Z\"><title>", layers[l].name,
            "</title></path>\n<rect x=\"", kWidth - kRight + 14, "\" y=\"", kTop + 20 * l,
            "\" width=\"12\" height=\"12\" fill=\"", layers[l].colour, "\"/><text x=\"", kWidth - kRight + 32,
            "\" y=\"", kTop + 11 + 20 * l, "\">", l == 0 ? "all the time" : layers[l].name, ", ",
            format_bytes(static_cast<uint64_t>(most)), "</text>\n");
  }
  const auto mark = [&](double bytes, const std::string& name, const char* style) {
    svg += cat("<line x1=\"", kLeft, "\" x2=\"", kWidth - kRight, "\" y1=\"", fixed(y(bytes)), "\" y2=\"",
               fixed(y(bytes)), "\" ", style, "/><text x=\"", kLeft - 6, "\" y=\"", fixed(y(bytes) + 4),
               "\" text-anchor=\"end\">", name, "</text>\n");
  };
  for (const double part : {0.0, .25, .5, .75})
    mark(part * static_cast<double>(plan.total_bytes),
         format_bytes(static_cast<uint64_t>(part * static_cast<double>(plan.total_bytes))),
         "stroke=\"#000\" stroke-opacity=\".15\"");
  mark(static_cast<double>(plan.total_bytes), "peak", "stroke=\"#000\" stroke-dasharray=\"4 3\"");
  if (shows_budget) mark(static_cast<double>(plan.budget_bytes), "budget", "stroke=\"#c00\"");
  return svg + cat("<text x=\"", kLeft, "\" y=\"", kHeight - 14,
                   "\">one microbatch, forward then backward, allocation by allocation</text>\n</svg>\n");
}

}  // namespace qlora::tools
