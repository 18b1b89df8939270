#include "train/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "memory/error.h"

namespace qlora {
namespace {

Metrics metrics(int steps) {
  Metrics m;
  for (int s = 1; s <= steps; ++s)
    m.train.push_back({s, s / 50.0, 2.0 / s + 0.1, 1.0 / s, 2e-4 * (1 - s / (1.0 + steps)), 400 * s, 0.5 * s,
                       800, uint64_t{600} << 20});
  m.eval = {{0, 0, 1.2, 0.7, 100}, {steps, 1, 0.4, 0.9, 100}};
  return m;
}

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(Report, IsOneWholePage) {
  Report r;
  r.title = "run <of> \"mine\"";
  r.figures = {{"eval loss", "0.40"}};
  r.metrics = metrics(50);
  r.samples = {{"q </dd><script>alert(1)</script>", "w", "", "a"}};
  r.settings = {{"learning_rate", 2e-4}, {"model", "a&b"}, {"list", {1, 2}}};
  const std::string page = render_report(r);
  EXPECT_EQ(count(page, "<figure"), 6u);
  EXPECT_EQ(count(page, "<script>"), 1u);  // our own: nothing of the data became markup
  EXPECT_NE(page.find("<title>run &lt;of&gt; &#34;mine&#34;</title>"), std::string::npos);
  EXPECT_NE(page.find("<tr><th>model</th><td>a&amp;b</td></tr>"), std::string::npos);
  EXPECT_NE(page.find("<td>[1,2]</td>"), std::string::npos);
  EXPECT_EQ(count(page, "<dt>before</dt>"), 0u);
  EXPECT_EQ(count(page, "<dt>after</dt>"), 1u);
  // Nothing is fetched.
  for (const char* outside : {"http:", "https:", "src=", "href=", "url(", "@import"})
    EXPECT_EQ(count(page, outside), 0u) << outside;
  for (const char* tag : {"figure", "svg", "table", "dl", "style", "script", "body", "html", "div"})
    EXPECT_EQ(count(page, cat("<", tag, ">")) + count(page, cat("<", tag, " ")),
              count(page, cat("</", tag, ">")))
        << tag;
}

TEST(Report, OfARunWithoutMetrics) {
  Report r;
  r.title = "none";
  const std::string page = render_report(r);
  EXPECT_EQ(count(page, "<svg"), 0u);
  EXPECT_EQ(count(page, "nan"), 0u);
  r.metrics.train.push_back({1, 1, 2.5, 0.5, 0, 10, 1, 10, 1});  // a single step, rate 0
  const std::string one = render_report(r);
  EXPECT_EQ(count(one, "<svg"), 5u);
  EXPECT_EQ(count(one, "nan"), 0u);
  EXPECT_EQ(count(one, "inf"), 0u);
}

// Where the curve goes: x to the right, y up, and every point inside the frame.
TEST(Report, CurvesStandWhereTheyShould) {
  const std::string plot = render_plot("p", {{"s", {0, 5, 10}, {0, 10, 5}}});
  const std::string begin = "class=\"line s0\" d=\"";
  const size_t at = plot.find(begin);
  ASSERT_NE(at, std::string::npos);
  double x0, y0, x1, y1, x2, y2;
  ASSERT_EQ(std::sscanf(plot.c_str() + at + begin.size(), "M%lf %lfL%lf %lfL%lf %lf\"", &x0, &y0, &x1, &y1,
                        &x2, &y2),
            6);
  EXPECT_NEAR(x1, (x0 + x2) / 2, 0.11);  // coordinates are written to a tenth
  EXPECT_NEAR(y2, (y0 + y1) / 2, 0.11);
  EXPECT_LT(x0, x2);
  EXPECT_LT(y1, y0);
  EXPECT_NE(plot.find("data-points=\"62.0,0,0;"), std::string::npos);
}

TEST(Report, ThinsLongCurvesButKeepsPeaks) {
  PlotSeries s{"s", {}, {}};
  for (int i = 0; i < 100000; ++i) {
    s.x.push_back(i);
    s.y.push_back(i == 54321 ? 1000 : i % 7);
  }
  s.y[77] = std::nan("");
  const std::string plot = render_plot("p", {s});
  EXPECT_LE(count(plot, ";") + 1, 800u);
  EXPECT_NE(plot.find(",54.32k,1000"), std::string::npos);
}

TEST(Report, Numbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(1234.4), "1234");
  EXPECT_EQ(short_number(2e-4), "0.0002");
  EXPECT_EQ(short_number(1234567), "1.235M");
  EXPECT_EQ(short_number(-25000), "-25k");
  EXPECT_EQ(short_number(std::nan("")), "–");
}

}  // namespace
}  // namespace qlora
