#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "train/data/dataset.h"

namespace qlora {

// What one forward and backward pass sees: documents laid end to end, no padding. T tokens, D documents.
struct Batch {
  std::vector<int32_t> ids;         // [T]
  std::vector<int32_t> targets;     // [T] the next token where that is a label of the same document, else -1
  std::vector<int32_t> positions;   // [T] from 0 in each document
  std::vector<int32_t> cu_seqlens;  // [D+1] document d has tokens [cu_seqlens[d], cu_seqlens[d+1])
  std::vector<uint64_t> places;     // [T] each token's place in the data: row * 2^32 + index in the row
  std::vector<int32_t> loss_rows;   // the t with targets[t] >= 0, ascending
  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
  int64_t documents() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

// One optimizer step: its microbatches, and what must be known before the first of them runs.
struct Step {
  int64_t number = 0;               // counted from 0
  double epoch = 0;                 // epochs done when the step is: 1.0 at the end of the first
  std::vector<Batch> microbatches;  // accumulation of them; fewer in the last step of an epoch
  int64_t tokens = 0;               // of all microbatches, masked ones too
  int64_t loss_tokens = 0;          // with a target: what the step's loss is divided by
};

// Each is the largest of any single microbatch of the run, taken independently of the others.
struct BatchMaxima {
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t longest = 0;    // tokens of one document
  int64_t loss_rows = 0;  // tokens with a target
};

struct BatchOptions {
  uint64_t seed = 42;
  bool shuffle = true;
  bool packing = false;
  int64_t max_seq_length = 2048;  // the capacity of a packed row
  int64_t batch = 2;              // rows a microbatch: packed rows with packing, else samples
  int64_t accumulation = 4;
  double epochs = 1;
  int64_t max_steps = 0;  // > 0: wins over epochs
};

// The order in which a run sees its data: a function of the data and the options alone, so that any step can
// be made at any time and a resumed run needs no replay.
//
// Packing places whole documents into rows of max_seq_length once: best-fit, longest first (ties in an order
// drawn by the seed), or with shuffle off next-fit in the data's order. Each epoch then visits the rows in an
// order drawn by (seed, epoch). An epoch's last batch and last step may be short; none is left out. Epochs
// and steps count as in transformers' Trainer: steps an epoch = ceil(batches / accumulation), steps of the
// run = ceil(epochs * steps an epoch).
class BatchPlan {
 public:
  // `data` must outlive the plan and hold at least one sample, none longer than max_seq_length when packing.
  // Category::usage for options out of range.
  BatchPlan(const Dataset& data, const BatchOptions& options);

  int64_t rows() const { return static_cast<int64_t>(row_begin_.size()) - 1; }
  int64_t batches_per_epoch() const { return batches_; }
  int64_t steps_per_epoch() const { return steps_; }
  int64_t total_steps() const { return total_steps_; }
  double tokens_per_step() const;  // the mean over an epoch
  // True for steps after which an epoch has been seen whole.
  bool ends_epoch(int64_t step) const { return (step + 1) % steps_ == 0; }

  // Exact for runs that visit up to 2^26 rows; for longer ones a bound: the largest `batch` rows together.
  BatchMaxima maxima() const;

  // Fills `out` with step `n` (counted from 0, any order of calls), reusing its memory. The plan keeps the
  // order of the epoch last asked for, so one thread at a time.
  void step(int64_t n, Step& out);

 private:
  void pack_best_fit();
  void pack_next_fit();
  void add_document(Batch& b, uint32_t sample) const;
  std::vector<uint32_t> order_of(int64_t epoch) const;
  BatchMaxima row_size(int64_t row) const;
  BatchMaxima bound() const;

  const Dataset& data_;
  BatchOptions options_;
  std::vector<int64_t> row_begin_;  // [rows + 1] into documents_
  std::vector<uint32_t> documents_;
  std::vector<int32_t> labels_;  // of each sample
  int64_t batches_ = 0, steps_ = 0, total_steps_ = 0;
  int64_t cached_epoch_ = -1;
  std::vector<uint32_t> order_;  // of the rows in cached_epoch_
};

}  // namespace qlora
