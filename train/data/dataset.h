#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace qlora {

// What happened to the rows of a data set on their way to samples.
struct DataCounts {
  uint64_t rows = 0;                // in the data, blank lines not counted
  uint64_t continued = 0;           // samples that go on with a longer text
  uint64_t truncated = 0;           // cut to max_seq_length
  uint64_t dropped_overlong = 0;    // longer than max_seq_length, dropped
  uint64_t dropped_unlabelled = 0;  // every label masked, dropped
};

// Samples, tokenized, in the order of the data: flat arrays, 5 bytes a token. A sample is one document (or
// one piece of a longer text), at most max_seq_length tokens.
class Dataset {
 public:
  Dataset() : offsets_{0} {}

  // A sample's place in the data: the row, counted from 0 without blank lines, * 2^32 + the index of its
  // first token in that row. Token t of sample i stands at place(i) + t.
  void add(std::span<const int32_t> ids, std::span<const uint8_t> has_loss, uint64_t place);
  // One after the other, with their counts and without a hash and a name. No more memory than it needs.
  static Dataset joined(std::vector<Dataset> parts);

  int64_t size() const { return static_cast<int64_t>(places_.size()); }
  int64_t length(int64_t i) const { return offsets_[i + 1] - offsets_[i]; }
  // has_loss[t]: token t is a label, predicted at t - 1. Never set for a sample's first token.
  std::span<const int32_t> ids(int64_t i) const { return {ids_.data() + offsets_[i], size_of_sample(i)}; }
  std::span<const uint8_t> has_loss(int64_t i) const {
    return {has_loss_.data() + offsets_[i], size_of_sample(i)};
  }
  uint64_t place(int64_t i) const { return places_[i]; }
  int64_t labels(int64_t i) const;  // tokens of sample i with loss
  int64_t tokens() const { return offsets_.back(); }
  int64_t labels() const;
  int64_t longest() const;
  size_t bytes() const;  // heap memory held

  // The samples for which `keep` is true, in the same order; hash and counts stay.
  Dataset subset(const std::vector<bool>& keep) const;

  DataCounts counts;
  std::string sha256;  // of the data's bytes, 64 hex digits
  std::string name;    // the file, as errors name it

 private:
  size_t size_of_sample(int64_t i) const { return static_cast<size_t>(length(i)); }
  std::vector<int32_t> ids_;
  std::vector<uint8_t> has_loss_;
  std::vector<int64_t> offsets_;
  std::vector<uint64_t> places_;
};

// Lines for the screen on what `counts` says that a user should know; empty when every row was used whole.
std::vector<std::string> said(const DataCounts& counts);

// Draws ceil(fraction * rows) rows by the seed for evaluation: {train, eval}, each in the data's order. All
// pieces of one long text go to the same side. Category::usage when a side would be empty or the fraction is
// not in (0, 1).
std::pair<Dataset, Dataset> split_for_evaluation(const Dataset& all, double fraction, uint64_t seed);

}  // namespace qlora
