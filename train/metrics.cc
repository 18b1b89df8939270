#include "train/metrics.h"

#include <sys/stat.h>

#include <cerrno>
#include <cmath>

#include "memory/error.h"
#include "memory/file.h"

namespace qlora {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 32;

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

double number(const Json& line, const char* key) {
  const auto it = line.find(key);
  return it != line.end() && it->is_number() ? it->get<double>() : std::nan("");
}

template <class Int>
Int whole(const Json& line, const char* key) {
  const auto it = line.find(key);
  return it != line.end() && it->is_number_integer() ? it->get<Int>() : Int{0};
}

// Adds a line to `out`; false when it is none of ours.
bool read_line(std::string_view text, Metrics& out) {
  Json line;
  try {
    line = parse_json(text, "metrics.jsonl");
  } catch (const Error&) {
    return false;
  }
  if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) return false;
  if (line.contains("eval_loss")) {
    out.eval.push_back({whole<int64_t>(line, "step"), number(line, "epoch"), number(line, "eval_loss"),
                        number(line, "eval_accuracy"), whole<int64_t>(line, "eval_tokens")});
  } else {
    out.train.push_back({whole<int64_t>(line, "step"), number(line, "epoch"), number(line, "loss"),
                         number(line, "grad_norm"), number(line, "learning_rate"),
                         whole<int64_t>(line, "tokens"), number(line, "seconds"),
                         number(line, "tokens_per_second"), whole<uint64_t>(line, "memory_bytes")});
  }
  return true;
}

// Calls f(line, metrics of the line) for each readable line, in order.
template <class F>
void for_each_line(const std::string& path, F&& f) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0 && errno == ENOENT) return;
  const std::string text = read_file(path, kMaxBytes);
  std::string_view left = text;
  while (!left.empty()) {
    const size_t end = std::min(left.find('\n'), left.size());
    const std::string_view line = left.substr(0, end);
    left.remove_prefix(std::min(end + 1, left.size()));
    Metrics one;
    if (!read_line(line, one)) return;
    f(line, one);
  }
}

void append_all(Metrics& all, const Metrics& one) {
  all.train.insert(all.train.end(), one.train.begin(), one.train.end());
  all.eval.insert(all.eval.end(), one.eval.begin(), one.eval.end());
}

Json to_json(const EvalMetrics& m) {
  return {{"step", m.step},
          {"epoch", finite(m.epoch)},
          {"eval_loss", finite(m.eval_loss)},
          {"eval_accuracy", finite(m.eval_accuracy)},
          {"eval_tokens", m.eval_tokens}};
}

Json or_null(const std::optional<double>& value) { return value ? finite(*value) : Json(nullptr); }
Json or_null(const std::optional<EvalMetrics>& value) { return value ? to_json(*value) : Json(nullptr); }

}  // namespace

std::string to_line(const TrainMetrics& m) {
  return Json{{"step", m.step},
              {"epoch", finite(m.epoch)},
              {"loss", finite(m.loss)},
              {"grad_norm", finite(m.grad_norm)},
              {"learning_rate", finite(m.learning_rate)},
              {"tokens", m.tokens},
              {"seconds", finite(m.seconds)},
              {"tokens_per_second", finite(m.tokens_per_second)},
              {"memory_bytes", m.memory_bytes}}
      .dump();
}

std::string to_line(const EvalMetrics& m) { return to_json(m).dump(); }

Metrics read_metrics(const std::string& path) {
  Metrics all;
  for_each_line(path, [&](std::string_view, const Metrics& one) { append_all(all, one); });
  return all;
}

namespace {

// Writes the lines of steps up to `resumed_at` again, and keeps what they say.
AppendedFile cut_back(const std::string& path, std::optional<int64_t> resumed_at, Metrics& all) {
  // A new run's is as good absent as empty: nothing of it need be on the disk before the first step.
  if (AppendedFile fresh(path, true); fresh.is_open()) return fresh;
  std::string kept;
  if (resumed_at) {
    for_each_line(path, [&](std::string_view line, const Metrics& one) {
      const int64_t step = one.train.empty() ? one.eval[0].step : one.train[0].step;
      if (step > *resumed_at) return;
      kept.append(line).push_back('\n');
      append_all(all, one);
    });
  }
  write_file(path, kept);
  return AppendedFile(path, false);
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& path, std::optional<int64_t> resumed_at)
    : file_(cut_back(path, resumed_at, all_)) {}

void MetricsWriter::add(const TrainMetrics& m) {
  file_.write(to_line(m) + '\n');
  all_.train.push_back(m);
}

void MetricsWriter::add(const EvalMetrics& m) {
  file_.write(to_line(m) + '\n');
  all_.eval.push_back(m);
}

void fill_from(RunResult& result, const Metrics& metrics) {
  if (!metrics.train.empty()) {
    result.steps = metrics.train.back().step;
    result.epochs = metrics.train.back().epoch;
    result.first_loss = metrics.train.front().loss;
    result.last_loss = metrics.train.back().loss;
    result.tokens = metrics.train.back().tokens;
    result.seconds = metrics.train.back().seconds;
    if (result.seconds > 0) result.tokens_per_second = static_cast<double>(result.tokens) / result.seconds;
    result.memory_bytes = std::max(result.memory_bytes, metrics.train.back().memory_bytes);
  }
  if (metrics.eval.empty()) return;
  result.first_eval = metrics.eval.front();
  result.last_eval = metrics.eval.back();
  result.best_eval = metrics.eval.front();
  for (const EvalMetrics& m : metrics.eval)
    if (m.eval_loss < result.best_eval->eval_loss) result.best_eval = m;
}

Json to_json(const RunResult& r) {
  return {{"steps", r.steps},
          {"epochs", finite(r.epochs)},
          {"stopped_early", r.stopped_early},
          {"first_loss", or_null(r.first_loss)},
          {"last_loss", or_null(r.last_loss)},
          {"first_eval", or_null(r.first_eval)},
          {"last_eval", or_null(r.last_eval)},
          {"best_eval", or_null(r.best_eval)},
          {"trainable_parameters", r.trainable_parameters},
          {"tokens", r.tokens},
          {"seconds", finite(r.seconds)},
          {"tokens_per_second", finite(r.tokens_per_second)},
          {"memory_bytes", r.memory_bytes},
          {"base", r.base},
          {"data_sha256", r.data_sha256},
          {"eval_data_sha256", r.eval_data_sha256.empty() ? Json(nullptr) : Json(r.eval_data_sha256)},
          {"settings", r.settings}};
}

}  // namespace qlora
