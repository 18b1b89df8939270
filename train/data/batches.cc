#include "train/data/batches.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "memory/error.h"
#include "train/data/order.h"

namespace qlora {
namespace {

constexpr int64_t kMostSteps = INT32_MAX;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_options(const BatchOptions& o) {
  if (o.batch < 1) fail(Category::usage, "--per-device-train-batch-size ", o.batch, ": must be at least 1");
  if (o.accumulation < 1)
    fail(Category::usage, "--gradient-accumulation-steps ", o.accumulation, ": must be at least 1");
  if (o.max_steps <= 0 && !(o.epochs > 0 && o.epochs < 1e9))
    fail(Category::usage, "--num-train-epochs ", o.epochs,
         ": must be above 0 and below 1e9; or give --max-steps");
}

}  // namespace

BatchPlan::BatchPlan(const Dataset& data, const BatchOptions& options) : data_(data), options_(options) {
  check_options(options);
  check(data.size() > 0, "a batch plan over no samples");
  if (data.size() > INT32_MAX)
    fail(Category::input, data.name, ": ", data.size(), " samples, at most ", INT32_MAX, " are supported");
  labels_.reserve(data.size());
  for (int64_t i = 0; i < data.size(); ++i) labels_.push_back(static_cast<int32_t>(data.labels(i)));
  if (!options.packing) {
    for (int64_t i = 0; i <= data.size(); ++i) row_begin_.push_back(i);
    for (int64_t i = 0; i < data.size(); ++i) documents_.push_back(static_cast<uint32_t>(i));
  } else {
    check(data.longest() <= options.max_seq_length, "a sample longer than a packed row");
    options.shuffle ? pack_best_fit() : pack_next_fit();
  }
  batches_ = ceil_div(rows(), options.batch);
  steps_ = ceil_div(batches_, options.accumulation);
  const double steps = std::ceil(options.epochs * static_cast<double>(steps_));
  if (options.max_steps <= 0 && steps > static_cast<double>(kMostSteps))
    fail(Category::usage, "--num-train-epochs ", options.epochs, ": comes to more than ", kMostSteps,
         " steps; give fewer, or --max-steps");
  if (options.max_steps > kMostSteps)
    fail(Category::usage, "--max-steps ", options.max_steps, ": must be at most ", kMostSteps);
  total_steps_ = options.max_steps > 0 ? options.max_steps : static_cast<int64_t>(steps);
  if (bound().tokens > INT32_MAX)
    fail(Category::usage, "--per-device-train-batch-size ", options.batch, ": more than 2^31 tokens a batch");
}

void BatchPlan::pack_best_fit() {
  const auto n = static_cast<uint32_t>(data_.size());
  std::vector<uint32_t> order = permutation(n, options_.seed, OrderStream::packing, 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return data_.length(a) > data_.length(b); });
  std::map<int64_t, std::vector<uint32_t>> by_room;  // rows not yet full, by the tokens that still fit
  std::vector<std::vector<uint32_t>> packed;
  for (uint32_t sample : order) {
    const int64_t length = data_.length(sample);
    auto it = by_room.lower_bound(length);
    int64_t room = options_.max_seq_length;
    auto row = static_cast<uint32_t>(packed.size());
    if (it == by_room.end()) {
      packed.emplace_back();
    } else {
      room = it->first;
      row = it->second.back();
      it->second.pop_back();
      if (it->second.empty()) by_room.erase(it);
    }
    packed[row].push_back(sample);
    if (room > length) by_room[room - length].push_back(row);
  }
  row_begin_.push_back(0);
  for (const auto& row : packed) {
    documents_.insert(documents_.end(), row.begin(), row.end());
    row_begin_.push_back(static_cast<int64_t>(documents_.size()));
  }
}

void BatchPlan::pack_next_fit() {
  int64_t room = options_.max_seq_length;
  row_begin_.push_back(0);
  for (int64_t i = 0; i < data_.size(); ++i) {
    if (data_.length(i) > room) {
      row_begin_.push_back(i);
      room = options_.max_seq_length;
    }
    documents_.push_back(static_cast<uint32_t>(i));
    room -= data_.length(i);
  }
  row_begin_.push_back(data_.size());
}

double BatchPlan::tokens_per_step() const {
  return static_cast<double>(data_.tokens()) / static_cast<double>(steps_);
}

std::vector<uint32_t> BatchPlan::order_of(int64_t epoch) const {
  const auto n = static_cast<uint32_t>(rows());
  if (options_.shuffle)
    return permutation(n, options_.seed, OrderStream::epoch, static_cast<uint64_t>(epoch));
  std::vector<uint32_t> order(n);
  for (uint32_t i = 0; i < n; ++i) order[i] = i;
  return order;
}

BatchMaxima BatchPlan::row_size(int64_t row) const {
  BatchMaxima size;
  for (int64_t d = row_begin_[row]; d < row_begin_[row + 1]; ++d) {
    const uint32_t sample = documents_[d];
    size.tokens += data_.length(sample);
    size.documents += 1;
    size.longest = std::max(size.longest, data_.length(sample));
    size.loss_rows += labels_[sample];
  }
  return size;
}

BatchMaxima BatchPlan::bound() const {
  std::vector<int64_t> tokens, documents, loss_rows;
  BatchMaxima all;
  for (int64_t r = 0; r < rows(); ++r) {
    const BatchMaxima size = row_size(r);
    tokens.push_back(size.tokens);
    documents.push_back(size.documents);
    loss_rows.push_back(size.loss_rows);
    all.longest = std::max(all.longest, size.longest);
  }
  const auto largest = [&](std::vector<int64_t>& v) {
    const auto end = v.begin() + std::min<int64_t>(options_.batch, rows());
    std::partial_sort(v.begin(), end, v.end(), std::greater<>());
    return std::accumulate(v.begin(), end, int64_t{0});
  };
  all.tokens = largest(tokens);
  all.documents = largest(documents);
  all.loss_rows = largest(loss_rows);
  return all;
}

BatchMaxima BatchPlan::maxima() const {
  const int64_t epochs = options_.shuffle ? ceil_div(total_steps_, steps_) : 1;
  if (epochs > (int64_t{1} << 26) / rows()) return bound();
  BatchMaxima all;
  std::vector<BatchMaxima> sizes(rows());
  for (int64_t r = 0; r < rows(); ++r) sizes[r] = row_size(r);
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    const std::vector<uint32_t> order = order_of(epoch);
    // An epoch cut short by max_steps counts whole: a longer run later still fits what this one planned.
    for (int64_t b = 0; b < batches_; ++b) {
      BatchMaxima batch;
      for (int64_t r = b * options_.batch; r < std::min((b + 1) * options_.batch, rows()); ++r) {
        const BatchMaxima& row = sizes[order[r]];
        batch.tokens += row.tokens;
        batch.documents += row.documents;
        batch.loss_rows += row.loss_rows;
        all.longest = std::max(all.longest, row.longest);
      }
      all.tokens = std::max(all.tokens, batch.tokens);
      all.documents = std::max(all.documents, batch.documents);
      all.loss_rows = std::max(all.loss_rows, batch.loss_rows);
    }
  }
  return all;
}

void BatchPlan::add_document(Batch& b, uint32_t sample) const {
  const auto ids = data_.ids(sample);
  const auto has_loss = data_.has_loss(sample);
  const uint64_t place = data_.place(sample);
  for (size_t t = 0; t < ids.size(); ++t) {
    const bool predicts = t + 1 < ids.size() && has_loss[t + 1];
    if (predicts) b.loss_rows.push_back(static_cast<int32_t>(b.ids.size()));
    b.ids.push_back(ids[t]);
    b.targets.push_back(predicts ? ids[t + 1] : -1);
    b.positions.push_back(static_cast<int32_t>(t));
    b.places.push_back(place + t);
  }
  b.cu_seqlens.push_back(static_cast<int32_t>(b.ids.size()));
}

void BatchPlan::step(int64_t n, Step& out) {
  check(n >= 0 && n < total_steps_, "step ", n, " of ", total_steps_);
  const int64_t epoch = n / steps_;
  if (epoch != cached_epoch_) {
    order_ = order_of(epoch);
    cached_epoch_ = epoch;
  }
  const int64_t first = n % steps_ * options_.accumulation;
  const int64_t last = std::min(first + options_.accumulation, batches_);
  out.number = n;
  out.epoch = static_cast<double>(epoch) + static_cast<double>(last) / static_cast<double>(batches_);
  out.microbatches.resize(last - first);
  out.tokens = out.loss_tokens = 0;
  for (int64_t i = first; i < last; ++i) {
    Batch& b = out.microbatches[i - first];
    b.ids.clear();
    b.targets.clear();
    b.positions.clear();
    b.places.clear();
    b.loss_rows.clear();
    b.cu_seqlens.assign(1, 0);
    for (int64_t r = i * options_.batch; r < std::min((i + 1) * options_.batch, rows()); ++r)
      for (int64_t d = row_begin_[order_[r]]; d < row_begin_[order_[r] + 1]; ++d)
        add_document(b, documents_[d]);
    out.tokens += b.tokens();
    out.loss_tokens += static_cast<int64_t>(b.loss_rows.size());
  }
}

}  // namespace qlora
