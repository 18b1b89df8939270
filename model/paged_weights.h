#pragma once
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/page_files.h"
#include "memory/pager.h"
#include "model/device_weights.h"
#include "model/weights.h"

namespace qlora {

// The frozen weights of a model too large for its memory. What lies in the model's own files stays there: a
// block's matrices are one page, which passes through a slot when the block's turn comes; the head is a page
// of its own, there from the last blocks on until the loss is known; rows of the embedding are read for the
// ids of a batch. Norms, biases, and what the model owns anyway (rows in another order, matrices quantized
// when it was read) are resident as ever. The bytes are the file's own, so are the results.
class PagedWeights {
 public:
  // What the model's views point to need not have been touched; where there are only shapes, all matrices are
  // planned as if a file had them as the model is to hold them. `slots` is how many blocks are resident.
  explicit PagedWeights(std::shared_ptr<const Model> model, int slots = 3);

  // After the rehearsals: opens the files again, measures what they give, and plans the passes of these
  // traces. `through` may put something between (a test's backend).
  using Through = std::function<std::unique_ptr<PageBackend>(std::unique_ptr<PageBackend>, const Pager&)>;
  void connect(std::initializer_list<const Trace*> traces, const Through& through = {});

  PageTraffic traffic() const;
  PageTraffic planned(const Trace& trace) const;   // of one pass; rows of the embedding apart
  double bandwidth() const { return bandwidth_; }  // bytes a second, measured by connect()
  std::string how() const { return blocks_.how(); }

  // The weights of one pass, for the decoder. Without pages: where the model has them, or `device`, when that
  // is not null.
  class Pass {
   public:
    Pass(Exec& e, const Model& model, PagedWeights* pages, const DeviceWeights* device = nullptr);
    // Block by block, each released before the next is asked for. Pointers are valid until then.
    BlockWeights acquire(int block);
    void release(int block);
    WeightView head();
    void release_head();
    // y[t] = the embedding of ids[t], times scale; tile by tile.
    void embedding_rows(std::span<const int32_t> ids, float scale, const BlockBatch& batch, const Mat& y);
    void end();

   private:
    Exec& exec_;
    const Model& model_;
    PagedWeights* pages_;
    const DeviceWeights* device_;
    std::optional<Pager::Pass> blocks_, head_;
    bool head_done_ = false;
  };

 private:
  // Where a page's bytes lie in the files, and in a slot.
  struct Piece {
    size_t file;
    const std::byte* begin;  // in the mapped file
    size_t bytes, at;
  };
  using Page = std::vector<Piece>;
  Page page_of(std::vector<WeightView*> views) const;
  static size_t bytes_of(const Page& page);
  PageFiles files_of(const std::vector<Page>& pages) const;
  static size_t largest(const std::vector<Page>& pages);
  void rebase(WeightView& w, const Page& page, std::byte* slot) const;

  std::shared_ptr<const Model> model_;
  std::vector<const MappedFile*> files_;
  std::vector<Page> block_pages_, head_page_;
  Pager blocks_, head_;
  int head_from_ = 0;  // the block of the forward pass from which on the head is on its way
  std::optional<PageFile> embedding_;
  uint64_t embedding_offset_ = 0;
  double bandwidth_ = 0;
};

}  // namespace qlora
