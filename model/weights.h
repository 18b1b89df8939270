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
//
// It comes in two stages, so that a run can be planned before anything is read: outline() knows every shape,
// format and address; fill() gives them their content.
class Model {
 public:
  static std::shared_ptr<Model> outline(std::shared_ptr<const Checkpoint> checkpoint, const BaseSpec& spec);
  // Quantizes or copies what cannot stay in place, on `threads` threads, one matrix at a time.
  // Category::input for what the checkpoint refuses; `progress(done, of)` counts blocks.
  void fill(int threads, const std::function<void(int, int)>& progress = {});
  bool filled() const { return tasks_.empty(); }
  // Both.
  static std::shared_ptr<const Model> load(std::shared_ptr<const Checkpoint> checkpoint, const BaseSpec& spec,
                                           int threads, const std::function<void(int, int)>& progress = {});

  const ModelDesc& desc() const { return checkpoint_->desc(); }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const WeightView& embed() const { return embed_; }
  const WeightView& head() const { return desc().tied ? embed_ : head_; }
  const float* final_norm() const { return final_norm_; }
  const BlockWeights& block(int i) const { return blocks_[static_cast<size_t>(i)]; }
  int block_count() const { return static_cast<int>(blocks_.size()); }
  // Angles for positions [0, positions), to be filled.
  RopeTables rope_tables(int64_t positions) const;
  // What the weights take once filled and used, a matrix's scales counted apart: in memory of our own, or in
  // the mapped file (resident once touched). block -1: embedding, head and final norm.
  struct Part {
    int block;
    size_t codes, constants;  // bytes: elements; scales, norms and biases
    bool mapped;
    bool looked_up = false;  // an embedding that is no head too: rows of it are read, by the host
  };
  const std::vector<Part>& parts() const { return parts_; }
  // How the linears are held ("nf4, double-quantized, blocks of 64").
  std::string storage() const;

 private:
  explicit Model(std::shared_ptr<const Checkpoint> checkpoint) : checkpoint_(std::move(checkpoint)) {}
  void outline_matrix(WeightView& w, int block, const std::string& tensor,
                      const std::optional<QuantizedSpec>& spec);
  void outline_quantized(WeightView& w, const std::string& tensor, const QuantizedSpec& spec);
  const float* outline_vector(int block, const std::string& tensor, int64_t size);
  std::byte* own(size_t bytes);

  std::shared_ptr<const Checkpoint> checkpoint_;
  WeightView embed_, head_;
  const float* final_norm_ = nullptr;
  std::vector<BlockWeights> blocks_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
  std::vector<Part> parts_;
  // What fill() has to do, in order.
  struct Task {
    int block;
    std::function<void(int threads)> run;
  };
  std::vector<Task> tasks_;
};

}  // namespace qlora
