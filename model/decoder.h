#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/gemm/decode_ahead.h"
#include "memory/exec.h"
#include "model/adapter.h"
#include "model/block.h"
#include "model/paged_weights.h"
#include "model/saved_pages.h"
#include "model/weights.h"

namespace qlora {

// A batch: rows (tokens) of several documents end to end.
struct TokenBatch {
  std::span<const int32_t> ids;         // [tokens]
  std::span<const int32_t> positions;   // [tokens], from 0 in each document
  std::span<const int32_t> cu_seqlens;  // [documents + 1]
  std::span<const uint64_t> places;     // [tokens], the token's place in the data (dropout)
  std::span<const int32_t> loss_rows;   // rows whose next token is predicted
  std::span<const int32_t> targets;     // [loss_rows], that next token
  // Of a CUDA device's batch, in pinned memory, [loss_rows] each: where a pass leaves each row's loss and
  // whether the largest logit was the target's. There once the stream has passed; the pass itself waits for
  // nothing, and its LossSum is empty.
  std::span<float> losses = {};
  std::span<uint8_t> hits = {};
};

// The largest of each quantity over a run, independently: what a rehearsal rehearses.
struct BatchLimits {
  int64_t tokens = 0, documents = 0, longest = 0, loss_rows = 0;
};

struct LossSum {
  double loss = 0;  // summed over loss rows
  int64_t tokens = 0, hits = 0;
  LossSum& operator+=(const LossSum& o) {
    loss += o.loss;
    tokens += o.tokens;
    hits += o.hits;
    return *this;
  }
};
// Of rows, in their order.
LossSum sum_of(std::span<const float> losses, std::span<const uint8_t> hits);

// What a pass reads besides the batch.
struct AdapterView {
  const AdapterLayout* layout = nullptr;
  const float* params = nullptr;
  float* grads = nullptr;  // null outside training
};

// The whole network: embedding, blocks, final norm, head and loss.
class Decoder {
 public:
  Decoder(std::shared_ptr<const Model> model, Numerics numerics, const BatchLimits& limits);
  const Model& model() const { return *model_; }
  const BatchLimits& limits() const { return limits_; }
  Numerics numerics() const { return numerics_; }
  size_t table_bytes() const { return rope_.bytes(); }
  // From here on passes over batches take their weights from `weights` (null: where the model has them), and
  // training keeps what its policy pages in `saved` (null: nothing). Both must outlive this. Generation pages
  // nothing.
  void set_pages(PagedWeights* weights, const SavedPages::Pagers* saved) {
    pages_ = weights;
    saved_pages_ = saved;
  }
  // From here on passes, generation's too, run on `stream`'s device with these weights, and the tables lie
  // there; `weights` must outlive this.
  void set_device(const DeviceWeights& weights, cuda::Stream& stream);
  // From here on passes over batches on a CUDA device decode weights ahead: two panels more, the same bits.
  // False: not any more.
  void set_decode_ahead(bool on) { ahead_ = on ? std::make_unique<DecodeAhead>() : nullptr; }
  // Whether a pass that was rehearsed since does.
  bool decodes_ahead() const { return ahead_ != nullptr && ahead_->bytes() > 0; }
  // From here on logits are at most so many bytes at a time, if no fewer than 16 rows: the more rows, the
  // fewer times the head is read and decoded. Of the bits it changes none.
  static constexpr int64_t kLogitsBytes = int64_t{48} << 20;
  void set_logits_bytes(int64_t bytes) { logits_bytes_ = bytes; }
  // What a block's page of each of kSavedGroups takes at most.
  std::array<size_t, kSavedGroups.size()> page_bytes(const AdapterLayout& adapter) const;

  // Forward and backward: gradients of grad_scale * (summed loss) are added to adapter.grads. One policy a
  // block.
  LossSum train(Exec& e, const TokenBatch& batch, const AdapterView& adapter,
                std::span<const SavePolicy> policy, const DropoutKey& dropout, float grad_scale);
  // Forward alone.
  LossSum evaluate(Exec& e, const TokenBatch& batch, const AdapterView& adapter) const;
  // Forward of a batch, then f(first row, logits fp32 [rows, vocab]) chunk by chunk, over every row; a CUDA
  // device's are copied to the host and waited for. hidden, where not null, gets each block's input and the
  // last output, fp32 [blocks + 1][tokens * dim], on the CPU.
  void for_logits(Exec& e, const TokenBatch& batch, const AdapterView& adapter,
                  const std::function<void(int64_t, const ConstMat&)>& f,
                  std::vector<std::vector<float>>* hidden = nullptr) const;

  // Generation. New tokens of several documents, see block_infer; logits fp32 [documents, vocab] of each
  // document's last new row (a document without new rows has none: its row is left alone). On a CUDA device
  // ids and positions lie in pinned memory, logits on the device, and nothing may be asked of either, nor
  // another batch be passed, before the stream has passed.
  struct InferBatch {
    std::span<const int32_t> ids, positions, docs, past;
    bool step = false;  // a row a document: products by gemm_few_nt, else by gemm_nt, as in training
  };
  void infer(Exec& e, const InferBatch& batch, const AdapterView& adapter,
             std::span<const KvCache> caches /* [block][document] */, const Mat& logits) const;

 private:
  BlockContext context(int block, const BlockWeights& weights, const AdapterView& a) const;
  BlockBatch block_batch(const Exec& e, const TokenBatch& batch, const DropoutKey& dropout) const;
  int64_t chunk_rows() const;
  const float* final_norm() const { return device_ ? device_->final_norm() : model_->final_norm(); }
  void head_chunk(Exec& e, const WeightView& head, const ConstMat& x, const Mat& normed, float* rstd,
                  const Mat& logits, bool step = false) const;
  LossSum loss(Exec& e, const TokenBatch& batch, const WeightView& head, const ConstMat& x, const Mat* dx,
               float grad_scale) const;
  Matrix forward_only(Exec& e, const TokenBatch& batch, const AdapterView& adapter,
                      PagedWeights::Pass& weights, std::vector<std::vector<float>>* hidden) const;

  std::shared_ptr<const Model> model_;
  PagedWeights* pages_ = nullptr;
  const SavedPages::Pagers* saved_pages_ = nullptr;
  const DeviceWeights* device_ = nullptr;  // null: the model's own are used
  Numerics numerics_;
  BatchLimits limits_;
  std::unique_ptr<DecodeAhead> ahead_;  // null: weights are decoded in their products' turn
  int64_t logits_bytes_ = kLogitsBytes;
  mutable RopeTables rope_;        // filled by the first pass that computes
  std::vector<BlockSaved> saved_;  // of the pass under way: empty between passes
};

}  // namespace qlora
