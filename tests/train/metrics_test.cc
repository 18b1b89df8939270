#include "train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "memory/error.h"
#include "tests/support/temp_folder.h"

namespace qlora {
namespace {

std::string path_of(const std::string& name) {
  static const test::TempFolder scratch;
  return scratch / name;
}
std::string content(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}
void append(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::app) << text;
}

TrainMetrics train_line(int64_t step) {
  return {step, step * 0.25, 2.5 - 0.1 * step, 0.5, 2e-4, 100 * step, 1.5, 66.7, 1 << 20};
}
EvalMetrics eval_line(int64_t step) { return {step, step * 0.25, 1.5, 0.75, 60}; }

TEST(Metrics, FieldsInOrder) {
  EXPECT_EQ(to_line(TrainMetrics{3, 0.75, 1.25, 0.5, 2e-4, 512, 1.5, 341.5, 1048576}),
            R"({"step":3,"epoch":0.75,"loss":1.25,"grad_norm":0.5,"learning_rate":0.0002,"tokens":512,)"
            R"("seconds":1.5,"tokens_per_second":341.5,"memory_bytes":1048576})");
  EXPECT_EQ(to_line(EvalMetrics{3, 0.75, 1.25, 0.5, 60}),
            R"({"step":3,"epoch":0.75,"eval_loss":1.25,"eval_accuracy":0.5,"eval_tokens":60})");
  TrainMetrics bad;
  bad.grad_norm = std::nan("");
  EXPECT_NE(to_line(bad).find(R"("grad_norm":null)"), std::string::npos);
}

TEST(Metrics, ReadsBackTheSameNumbers) {
  const std::string path = path_of("same.jsonl");
  TrainMetrics m = train_line(1);
  m.loss = 0.1 + 0.2;
  m.learning_rate = 1.0 / 3;
  MetricsWriter(path, std::nullopt).add(m);
  const Metrics all = read_metrics(path);
  ASSERT_EQ(all.train.size(), 1u);
  EXPECT_EQ(all.train[0].loss, m.loss);
  EXPECT_EQ(all.train[0].learning_rate, m.learning_rate);
  EXPECT_EQ(all.train[0].memory_bytes, m.memory_bytes);
  EXPECT_EQ(to_line(all.train[0]), to_line(m));
  EXPECT_TRUE(read_metrics(path_of("absent.jsonl")).train.empty());
}

TEST(Metrics, CutBackOnResume) {
  const std::string path = path_of("cut.jsonl");
  std::string want;
  {
    MetricsWriter w(path, std::nullopt);
    w.add(eval_line(0));
    for (int step = 1; step <= 6; ++step) {
      w.add(train_line(step));
      if (step % 2 == 0) w.add(eval_line(step));
      if (step == 4) want = content(path);
    }
  }
  append(path, R"({"step":7,"epo)");  // torn by a kill
  EXPECT_EQ(read_metrics(path).train.size(), 6u);
  MetricsWriter w(path, 4);
  EXPECT_EQ(content(path), want);
  EXPECT_EQ(w.all().train.size(), 4u);
  EXPECT_EQ(w.all().eval.size(), 3u);
  EXPECT_EQ(w.all().eval.back().step, 4);
  w.add(train_line(5));
  EXPECT_EQ(content(path), want + to_line(train_line(5)) + "\n");
}

TEST(Metrics, TornLastLineOfTheCheckpointsStep) {
  const std::string path = path_of("torn.jsonl");
  { MetricsWriter(path, std::nullopt).add(train_line(1)); }
  const std::string first = content(path);
  append(path, to_line(train_line(2)));  // whole but for its '\n'
  { MetricsWriter w(path, 9); }
  EXPECT_EQ(content(path), first + to_line(train_line(2)) + "\n");
  append(path, "{\"step\":3}garbage\n" + to_line(train_line(4)) + "\n");
  { MetricsWriter w(path, 9); }
  EXPECT_EQ(content(path), first + to_line(train_line(2)) + "\n");
  { MetricsWriter w(path, std::nullopt); }  // a new run begins anew
  EXPECT_EQ(content(path), "");
}

TEST(Metrics, FailsAsIo) {
  try {
    MetricsWriter w("/proc/no/such/metrics.jsonl", std::nullopt);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::io);
  }
}

TEST(Metrics, Result) {
  Metrics m;
  RunResult r;
  fill_from(r, m);
  EXPECT_EQ(to_json(r)["first_loss"], nullptr);
  for (int step = 1; step <= 4; ++step) m.train.push_back(train_line(step));
  m.eval = {{0, 0, 2.0, 0.5, 60}, {2, 0.5, 1.0, 0.8, 60}, {4, 1.0, 1.1, 0.9, 60}};
  fill_from(r, m);
  const Json j = to_json(r);
  EXPECT_EQ(j["steps"], 4);
  EXPECT_EQ(j["first_loss"], 2.4);
  EXPECT_EQ(j["last_loss"], m.train[3].loss);
  EXPECT_EQ(j["first_eval"]["eval_loss"], 2.0);
  EXPECT_EQ(j["last_eval"]["eval_loss"], 1.1);
  EXPECT_EQ(j["best_eval"]["step"], 2);
  EXPECT_EQ(j["tokens_per_second"], 400 / 1.5);
  EXPECT_EQ(j["eval_data_sha256"], nullptr);
}

}  // namespace
}  // namespace qlora
