#include "train/data/dataset.h"

#include <algorithm>
#include <cmath>

#include "memory/error.h"
#include "train/data/order.h"

namespace qlora {

void Dataset::add(std::span<const int32_t> ids, std::span<const uint8_t> has_loss, uint64_t place) {
  check(ids.size() == has_loss.size() && !ids.empty() && !has_loss[0], "a sample of ", ids.size(),
        " tokens and ", has_loss.size(), " masks, or a label on its first token");
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  has_loss_.insert(has_loss_.end(), has_loss.begin(), has_loss.end());
  offsets_.push_back(static_cast<int64_t>(ids_.size()));
  places_.push_back(place);
}

Dataset Dataset::joined(std::vector<Dataset> parts) {
  Dataset out;
  size_t tokens = 0, samples = 0;
  for (const Dataset& p : parts) {
    tokens += p.ids_.size();
    samples += p.places_.size();
  }
  out.ids_.reserve(tokens);
  out.has_loss_.reserve(tokens);
  out.offsets_.reserve(samples + 1);
  out.places_.reserve(samples);
  for (Dataset& p : parts) {
    const int64_t base = out.tokens();
    out.ids_.insert(out.ids_.end(), p.ids_.begin(), p.ids_.end());
    out.has_loss_.insert(out.has_loss_.end(), p.has_loss_.begin(), p.has_loss_.end());
    for (size_t i = 1; i < p.offsets_.size(); ++i) out.offsets_.push_back(base + p.offsets_[i]);
    out.places_.insert(out.places_.end(), p.places_.begin(), p.places_.end());
    out.counts.rows += p.counts.rows;
    out.counts.continued += p.counts.continued;
    out.counts.truncated += p.counts.truncated;
    out.counts.dropped_overlong += p.counts.dropped_overlong;
    out.counts.dropped_unlabelled += p.counts.dropped_unlabelled;
    p = Dataset();
  }
  return out;
}

int64_t Dataset::labels(int64_t i) const {
  const auto mask = has_loss(i);
  return std::count(mask.begin(), mask.end(), uint8_t{1});
}

int64_t Dataset::labels() const { return std::count(has_loss_.begin(), has_loss_.end(), uint8_t{1}); }

int64_t Dataset::longest() const {
  int64_t n = 0;
  for (int64_t i = 0; i < size(); ++i) n = std::max(n, length(i));
  return n;
}

size_t Dataset::bytes() const {
  return ids_.capacity() * sizeof(int32_t) + has_loss_.capacity() + offsets_.capacity() * sizeof(int64_t) +
         places_.capacity() * sizeof(uint64_t);
}

Dataset Dataset::subset(const std::vector<bool>& keep) const {
  Dataset out;
  for (int64_t i = 0; i < size(); ++i)
    if (keep[i]) out.add(ids(i), has_loss(i), place(i));
  out.counts = counts;
  out.sha256 = sha256;
  out.name = name;
  return out;
}

std::vector<std::string> said(const DataCounts& c) {
  std::vector<std::string> lines;
  const auto rows = [](uint64_t n) { return cat(n, n == 1 ? " row" : " rows"); };
  if (c.truncated) lines.push_back(cat(rows(c.truncated), " cut to --max-seq-length"));
  if (c.continued) lines.push_back(cat(rows(c.continued), " added to go on with longer texts"));
  if (c.dropped_overlong)
    lines.push_back(cat(rows(c.dropped_overlong), " longer than --max-seq-length dropped"));
  if (c.dropped_unlabelled)
    lines.push_back(cat(rows(c.dropped_unlabelled), " with every label masked dropped"));
  return lines;
}

std::pair<Dataset, Dataset> split_for_evaluation(const Dataset& all, double fraction, uint64_t seed) {
  if (!(fraction > 0 && fraction < 1))
    fail(Category::usage, "--eval-fraction ", fraction, ": must lie between 0 and 1");
  // Rows by their number among those that gave samples: samples of one row stand next to each other.
  std::vector<uint32_t> row_of(all.size());
  uint32_t rows = 0;
  for (int64_t i = 0; i < all.size(); ++i) {
    if (i > 0 && all.place(i) >> 32 != all.place(i - 1) >> 32) ++rows;
    row_of[i] = rows;
  }
  rows += all.size() > 0;
  const auto wanted = static_cast<uint32_t>(std::ceil(fraction * rows));
  if (wanted == 0 || wanted >= rows)
    fail(Category::usage, "--eval-fraction ", fraction, ": of ", rows, " rows it takes ", wanted,
         " and leaves none to train on; give a smaller one or an --eval-dataset");
  const std::vector<uint32_t> order = permutation(rows, seed, OrderStream::evaluation, 0);
  std::vector<bool> drawn(rows);
  for (uint32_t i = 0; i < wanted; ++i) drawn[order[i]] = true;
  std::vector<bool> train(all.size()), eval(all.size());
  for (int64_t i = 0; i < all.size(); ++i) {
    eval[i] = drawn[row_of[i]];
    train[i] = !eval[i];
  }
  return {all.subset(train), all.subset(eval)};
}

}  // namespace qlora
