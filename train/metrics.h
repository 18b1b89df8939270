#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/io/json.h"
#include "train/appended_file.h"

namespace qlora {

// A line of metrics.jsonl about training, its fields in this order. Numbers are written so that they read
// back the same; what is not finite is written as null.
struct TrainMetrics {
  int64_t step = 0;  // steps done
  double epoch = 0;
  double loss = 0;               // mean over all tokens with loss since the last line
  double grad_norm = 0;          // before clipping
  double learning_rate = 0;      // the one that the step used
  int64_t tokens = 0;            // masked ones too, from the run's start
  double seconds = 0;            // from the run's start
  double tokens_per_second = 0;  // since the last line
  uint64_t memory_bytes = 0;     // peak so far
};

// A line about an evaluation.
struct EvalMetrics {
  int64_t step = 0;
  double epoch = 0;
  double eval_loss = 0;
  double eval_accuracy = 0;
  int64_t eval_tokens = 0;  // with loss
};

// What metrics.jsonl holds.
struct Metrics {
  std::vector<TrainMetrics> train;
  std::vector<EvalMetrics> eval;
};

// One line, without '\n'.
std::string to_line(const TrainMetrics& m);
std::string to_line(const EvalMetrics& m);

// Lines up to the first that cannot be read: a run that was killed may have torn its last. An absent file
// holds none. Category::io when the system fails.
Metrics read_metrics(const std::string& path);

// Appends to metrics.jsonl, each line in one write, so that a kill tears at most the last.
class MetricsWriter {
 public:
  // With `resumed_at` the file is cut back to that step first: lines of later steps, and from the first that
  // cannot be read on, are gone. Without, it begins anew. Category::io.
  MetricsWriter(const std::string& path, std::optional<int64_t> resumed_at);

  void add(const TrainMetrics& m);
  void add(const EvalMetrics& m);
  // What the file holds, the kept lines included.
  const Metrics& all() const { return all_; }
  // On the run's good end: the disk has all of it. Category::io.
  void finish() { file_.finish(); }

 private:
  Metrics all_;
  AppendedFile file_;
};

// What a run came to: the figures of result.json.
struct RunResult {
  int64_t steps = 0;
  double epochs = 0;
  bool stopped_early = false;
  std::optional<double> first_loss, last_loss;  // of the first and last logged step
  std::optional<EvalMetrics> first_eval, last_eval, best_eval;
  int64_t trainable_parameters = 0;
  int64_t tokens = 0;  // masked ones too
  double seconds = 0;
  double tokens_per_second = 0;
  uint64_t memory_bytes = 0;  // peak
  std::string base, data_sha256, eval_data_sha256;
  Json settings = Json::object();  // every setting in force
};

// steps, epochs, losses and accuracies, from what the metrics say; the rest stays as it is.
void fill_from(RunResult& result, const Metrics& metrics);
// result.json: absent figures are null.
Json to_json(const RunResult& result);

}  // namespace qlora
