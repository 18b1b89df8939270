#include "train/report.h"

#include <functional>

#include "model/text/html.h"

namespace qlora {
namespace {

constexpr const char* kStyle = R"(
:root {
  color-scheme: light dark;
  --ink: #1c2230; --soft: #667085; --line: #e3e6ec; --card: #fff; --page: #f6f7f9;
  --s0: #2f6fde; --s1: #d9622b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9f0; --soft: #98a2b3; --line: #2d3340; --card: #1a1f2a; --page: #11151d;
    --s0: #6ea2ff; --s1: #ff9a62;
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 1240px; padding: 24px 16px 48px;
  background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 24px; margin: 0 0 16px; overflow-wrap: anywhere }
h2 { font-size: 18px; margin: 32px 0 12px }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px; margin: 0 }
.figures div, .plot, .sample {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
}
.figures dt, .sample dt { color: var(--soft); font-size: 13px }
.figures dd { margin: 0; font-size: 20px; font-weight: 600; overflow-wrap: anywhere }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 12px }
.plot { margin: 0 }
figcaption { font-weight: 600 }
.key { font-weight: 400; margin-left: 12px }
.key::before {
  content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; background: currentColor;
}
output { float: right; font-weight: 400; color: var(--soft); font-variant-numeric: tabular-nums }
.key.s0 { color: var(--s0) }
.key.s1 { color: var(--s1) }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--soft); font-size: 11px }
.grid { stroke: var(--line) }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.dots { fill: none; stroke-width: 6; stroke-linecap: round }
.line.s0, .dots.s0 { stroke: var(--s0) }
.line.s1, .dots.s1 { stroke: var(--s1) }
.sample { margin: 0 0 12px }
.sample dd, td { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere }
.sample dd { margin: 0 0 8px; white-space: pre-wrap }
table {
  border-collapse: collapse; width: 100%;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
td, th { padding: 4px 14px; border-top: 1px solid var(--line); text-align: left; vertical-align: top }
th { width: 1%; font-weight: 400; font-size: 13px; color: var(--soft); white-space: nowrap }
tr:first-child > * { border-top: 0 }
)";

// Shows the numbers nearest to the pointer; the page is whole without it.
constexpr const char* kScript = R"(
for (const figure of document.querySelectorAll('.plot')) {
  const svg = figure.querySelector('svg'), out = figure.querySelector('output');
  const lines = [...svg.querySelectorAll('.line')].map(p => ({
    name: p.dataset.name, points: p.dataset.points.split(';').map(t => t.split(','))
  }));
  const say = x => lines.map(line => {
    const [, step, value] = line.points.reduce((a, c) => Math.abs(c[0] - x) < Math.abs(a[0] - x) ? c : a);
    return `step ${step}: ${lines.length > 1 ? line.name + ' ' : ''}${value}`;
  }).join(' · ');
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect();
    out.textContent = say((e.clientX - box.left) / box.width * svg.viewBox.baseVal.width);
  });
  svg.addEventListener('pointerleave', () => out.textContent = '');
}
)";

PlotSeries train_curve(const Metrics& m, const char* name,
                       const std::function<double(const TrainMetrics&)>& value) {
  PlotSeries s{name, {}, {}};
  for (const TrainMetrics& t : m.train) {
    s.x.push_back(static_cast<double>(t.step));
    s.y.push_back(value(t));
  }
  return s;
}

PlotSeries eval_curve(const Metrics& m, const char* name,
                      const std::function<double(const EvalMetrics&)>& value) {
  PlotSeries s{name, {}, {}};
  for (const EvalMetrics& e : m.eval) {
    s.x.push_back(static_cast<double>(e.step));
    s.y.push_back(value(e));
  }
  return s;
}

std::string plots(const Metrics& m) {
  const auto train = [&](const char* name, auto value) { return train_curve(m, name, value); };
  const auto eval = [&](const char* name, auto value) { return eval_curve(m, name, value); };
  return render_plot("Loss", {train("training", [](const TrainMetrics& t) { return t.loss; }),
                              eval("evaluation", [](const EvalMetrics& e) { return e.eval_loss; })}) +
         render_plot("Evaluation accuracy, %",
                     {eval("accuracy", [](const EvalMetrics& e) { return 100 * e.eval_accuracy; })}) +
         render_plot("Learning rate",
                     {train("rate", [](const TrainMetrics& t) { return t.learning_rate; })}) +
         render_plot("Gradient norm", {train("norm", [](const TrainMetrics& t) { return t.grad_norm; })}) +
         render_plot("Tokens per second",
                     {train("speed", [](const TrainMetrics& t) { return t.tokens_per_second; })}) +
         render_plot("Peak memory, MiB", {train("memory", [](const TrainMetrics& t) {
                       return static_cast<double>(t.memory_bytes) / (1 << 20);
                     })});
}

void definition(std::string& out, const char* name, const std::string& value) {
  if (!value.empty()) out += std::string("<dt>") + name + "</dt><dd>" + html_text(value) + "</dd>";
}

std::string shown_value(const Json& value) {
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string html_text(std::string_view text) {
  std::string plain(text);
  for (char& c : plain)
    if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') c = ' ';
  return escape_html(plain);
}

std::string render_report(const Report& r) {
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>" +
      html_text(r.title) + "</title><style>" + kStyle + "</style></head><body>\n<h1>" + html_text(r.title) +
      "</h1>\n<dl class=\"figures\">";
  for (const auto& [name, value] : r.figures)
    out += "<div><dt>" + html_text(name) + "</dt><dd>" + html_text(value) + "</dd></div>";
  out += "</dl>\n";
  const std::string drawn = plots(r.metrics);
  if (!drawn.empty()) out += "<h2>Training</h2>\n<div class=\"plots\">\n" + drawn + "</div>\n";
  if (!r.samples.empty()) out += "<h2>Before and after</h2>\n";
  for (const ReportSample& s : r.samples) {
    out += "<dl class=\"sample\">";
    definition(out, "question", s.prompt);
    definition(out, "wanted", s.wanted);
    definition(out, "before", s.before);
    definition(out, "after", s.after);
    out += "</dl>\n";
  }
  if (!r.settings.empty()) {
    out += "<h2>Settings</h2>\n<table>";
    for (const auto& [key, value] : r.settings.items())
      out += "<tr><th>" + html_text(key) + "</th><td>" + html_text(shown_value(value)) + "</td></tr>\n";
    out += "</table>\n";
  }
  return out + "<script>" + kScript + "</script>\n</body></html>\n";
}

}  // namespace qlora
