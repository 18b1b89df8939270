// qlora-eval: loss, perplexity and accuracy of a model with or without an adapter on a data set.
#include <chrono>
#include <cmath>
#include <cstring>

#include "memory/cuda/start.h"
#include "model/generate.h"
#include "model/io/safetensors.h"
#include "tools/common/dataset.h"
#include "tools/common/format.h"
#include "tools/common/main.h"
#include "tools/common/tables.h"
#include "tools/common/threads.h"
#include "train/eval_score.h"
#include "train/evaluator.h"

using namespace qlora;
using namespace qlora::tools;

namespace {

constexpr int kSlots = 16;  // answers under way at once

struct Run {
  Options& options;
  Screen screen{options};
  int threads = thread_count(options);
  Base base = open_base(options);
  BaseLoading loading{base, threads, {}};
  TextTools text = open_text_if_any(base.source.path, options.find<std::string>("chat-template"));
  std::shared_ptr<const Model> model = loading.model();
  RunDevice device = run_device(options, *model, threads);
  Adapter adapter = open_adapter(options.find<std::string>("adapter"), model->desc());
  std::unique_ptr<RowEncoder> encoder = row_encoder(options, text, model->desc().vocab);
  ReadOptions reading = read_options(options, threads);
  DataRows rows = open_rows(options, single_dataset(options, "dataset"));
};

// Loss over all samples, in batches of the data's order.
Json measure(Run& r, const Dataset& data) {
  BatchOptions batches;
  batches.shuffle = false;
  batches.accumulation = 1;
  batches.batch = r.options.get<int64_t>("per-device-eval-batch-size");
  batches.max_seq_length = r.reading.max_seq_length;
  BatchPlan plan(data, batches);
  Evaluator evaluator(r.model, numerics_of(r.options), r.adapter.view(), plan.maxima(), r.device);
  const auto began = std::chrono::steady_clock::now();
  LossSum sum;
  int64_t tokens = 0;
  Step step;
  for (int64_t i = 0; i < plan.total_steps(); ++i) {
    plan.step(i, step);
    for (const Batch& b : step.microbatches) sum += evaluator.evaluate(b);
    tokens += step.tokens;
    r.screen.progress({.what = "batch",
                       .done = i + 1,
                       .total = plan.total_steps(),
                       .loss = sum.loss / static_cast<double>(sum.tokens)});
  }
  r.screen.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const double loss = sum.loss / static_cast<double>(sum.tokens);
  return {{"loss", loss},
          {"perplexity", std::exp(loss)},
          {"tokens", sum.tokens},
          {"accuracy", static_cast<double>(sum.hits) / static_cast<double>(sum.tokens)},
          {"tokens_per_second", static_cast<double>(tokens) / seconds}};
}

// logits.N fp32 [tokens, vocabulary] and input_ids.N of each sample, streamed.
void write_logits(Run& r, const Dataset& data, const std::string& path) {
  const int64_t vocab = r.model->desc().vocab;
  std::vector<TensorSpec> specs;
  for (int64_t i = 0; i < data.size(); ++i) {
    specs.push_back({"logits." + std::to_string(i), DType::f32, {data.length(i), vocab}});
    specs.push_back({"input_ids." + std::to_string(i), DType::i64, {data.length(i)}});
  }
  SafetensorsWriter out(path, specs);
  BatchOptions one;
  one.shuffle = false;
  one.accumulation = one.batch = 1;
  one.max_seq_length = r.reading.max_seq_length;
  BatchPlan plan(data, one);
  Evaluator evaluator(r.model, numerics_of(r.options), r.adapter.view(), plan.maxima(), r.device);
  Step step;
  // The writer's order is by type, then name: samples are computed as their turn comes.
  for (const TensorSpec& t : out.order()) {
    const int64_t sample = std::stoll(t.name.substr(t.name.find('.') + 1));
    if (t.dtype == DType::i64) {
      const std::vector<int64_t> ids(data.ids(sample).begin(), data.ids(sample).end());
      out.write(t.name, ids.data(), ids.size() * sizeof(int64_t));
      continue;
    }
    plan.step(sample, step);
    evaluator.for_logits(step.microbatches.at(0), [&](int64_t, const ConstMat& logits) {
      out.write(t.name, logits.data, static_cast<size_t>(logits.rows * vocab) * sizeof(float));
    });
  }
  out.commit();
}

// Every row answered greedily, and compared with the answer it has.
Json answer(Run& r) {
  const DatasetFormat format = format_of(r.rows, r.reading);
  std::vector<Generator::Request> requests;
  std::vector<std::string> wanted;
  int64_t longest = 1;
  const int64_t max_new = r.options.get<int64_t>("max-new-tokens");
  for (int64_t i = 0; i < r.rows.size(); ++i) {
    Question q = question_of(r.rows.row(i), format, r.reading.columns, *r.encoder, r.rows.where(i));
    longest = std::max(longest, static_cast<int64_t>(q.prompt.size()) + max_new);
    requests.push_back({std::move(q.prompt), max_new});
    wanted.push_back(std::move(q.wanted));
  }
  const auto generator =
      Generator::fitting(r.model, numerics_of(r.options), r.adapter.view(),
                         {std::min<int>(kSlots, static_cast<int>(requests.size())), longest}, r.device);
  int64_t made = 0;
  const auto answers =
      generator->run(requests, {}, stop_ids(r.model->desc(), r.text), 0, [&](size_t, int32_t) {
        if (++made % 64 == 0) r.screen.progress({.what = "answering, token", .done = made});
        return true;
      });
  r.screen.finish();
  AnswerScores scores;
  for (size_t i = 0; i < answers.size(); ++i)
    scores.add(r.text.tokenizer->decode(answers[i], true), wanted[i]);
  return scores.to_json();
}

int body(Options& options) {
  require_device(options);
  Run run{options};
  warn_of_unused_variables(options, run.screen);
  if (cuda::runtime_version() != 0) run.screen.line("device   " + device_text(run.device.device));
  const Dataset data = read_dataset(run.rows, *run.encoder, run.reading);
  for (const std::string& line : said(data.counts)) run.screen.line(line);
  Json result = measure(run, data);
  if (options.get<bool>("generate")) result.update(answer(run));
  if (const auto path = options.find<std::string>("logits")) write_logits(run, data, *path);
  if (options.get<bool>("json")) {
    print_json(result);
    return 0;
  }
  for (const auto& [name, value] : result.items())
    run.screen.line(
        cat(name, "  ", value.is_number_float() ? format_value(value.get<double>()) : value.dump()));
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_tool(argc, argv, eval_table, this_build(), body); }
