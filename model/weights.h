#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/block.h"
#include "model/io/checkpoint.h"
#include "model/rope_table.h"
#include "quant/quantized_weight.h"

namespace qlora {

// How the linears of the blocks are to be held. Embeddings, norms, biases and the head stay as stored.
struct BaseSpec {
  // Without a value: as the checkpoint has them (`--bits keep`, and 16: nothing is quantized).
  std::optional<QuantizedSpec> quantize;
};

// A frozen model: every weight either in place in the mapped checkpoint or in one allocation of its own.
class Model {
 public:
  // Quantizes or copies what cannot stay in place, on `threads` threads, one matrix at a time.
  // Category::input for what the checkpoint refuses; `progress(done, of)` counts matrices.
  static std::shared_ptr<const Model> load(std::shared_ptr<const Checkpoint> checkpoint, const BaseSpec& spec,
                                           int threads, const std::function<void(int, int)>& progress = {});

  const ModelDesc& desc() const { return checkpoint_->desc(); }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const WeightView& embed() const { return embed_; }
  const WeightView& head() const { return head_; }
  const float* final_norm() const { return final_norm_.data(); }
  const BlockWeights& block(int i) const { return blocks_[static_cast<size_t>(i)]; }
  int block_count() const { return static_cast<int>(blocks_.size()); }
  // Angles for positions [0, positions).
  RopeTables rope_tables(int64_t positions) const;
  // Bytes of weights in memory of our own, and in the mapped file (resident once touched).
  size_t owned_bytes() const { return owned_bytes_; }
  size_t mapped_bytes() const { return mapped_bytes_; }
  // How the linears are held ("nf4, double-quantized, blocks of 64").
  std::string storage() const;

 private:
  explicit Model(std::shared_ptr<const Checkpoint> checkpoint) : checkpoint_(std::move(checkpoint)) {}
  WeightView in_place_or_copied(const std::string& tensor);
  WeightView quantized(const std::string& tensor, const QuantizedSpec& spec, int threads);
  std::byte* own(size_t bytes);
  const float* vector_of(const std::string& tensor, int64_t size);

  std::shared_ptr<const Checkpoint> checkpoint_;
  WeightView embed_, head_;
  std::vector<float> final_norm_;
  std::vector<BlockWeights> blocks_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
  size_t owned_bytes_ = 0, mapped_bytes_ = 0;
};

}  // namespace qlora
