#include "model/paged_weights.h"

#include <algorithm>

#include "kernels/embedding/embedding.h"
#include "memory/page_backends.h"
#include "model/mapped_weights.h"

namespace qlora {
namespace {

constexpr size_t kAlign = PageBackend::kPageAlign;
// Pieces of a page with no more than this between them are read as one.
constexpr size_t kGap = size_t{32} << 10;

}  // namespace

PagedWeights::PagedWeights(std::shared_ptr<const Model> model, int slots)
    : model_(std::move(model)),
      files_(model_->checkpoint().files()),
      block_pages_([this] {
        std::vector<Page> pages;
        for (int i = 0; i < model_->block_count(); ++i) {
          BlockWeights b = model_->block(i);
          std::vector<WeightView*> views;
          for (WeightView& w : b.linear) views.push_back(&w);
          pages.push_back(page_of(views));
        }
        return pages;
      }()),
      head_page_([this] {
        WeightView head = model_->head();
        return std::vector<Page>{page_of({&head})};
      }()),
      blocks_("weights", static_cast<uint32_t>(block_pages_.size()), largest(block_pages_), slots,
              Pager::Life::lasting),
      head_("head", 1, largest(head_page_), 1, Pager::Life::lasting) {
  // The head's fetch shares the disk with as many blocks' as have its size.
  const size_t block = std::max<size_t>(largest(block_pages_), 1);
  const auto ahead = static_cast<int>((largest(head_page_) + block - 1) / block);
  head_from_ = std::max(0, model_->block_count() - ahead);
}

PagedWeights::Page PagedWeights::page_of(std::vector<WeightView*> views) const {
  Page pieces;
  for (WeightView* w : views)
    for_each_part(*w, [&](const auto* p, size_t bytes) {
      if (files_.empty()) pieces.push_back({pieces.size(), nullptr, bytes, 0});  // each where it likes
      const auto* const data = reinterpret_cast<const std::byte*>(p);
      for (size_t f = 0; f < files_.size(); ++f) {
        if (!files_[f]->contains(data)) continue;
        const size_t lead = static_cast<size_t>(data - files_[f]->data()) % kAlign;
        pieces.push_back({f, data - lead, bytes + lead, 0});
      }
    });
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return std::tie(a.file, a.begin) < std::tie(b.file, b.begin);
  });
  Page page;
  for (const Piece& p : pieces) {
    if (!page.empty() && page.back().file == p.file &&
        p.begin <= page.back().begin + page.back().bytes + kGap)
      page.back().bytes =
          std::max(page.back().bytes, static_cast<size_t>(p.begin + p.bytes - page.back().begin));
    else
      page.push_back(p);
  }
  size_t at = 0;
  for (Piece& p : page) {
    p.at = at;
    at += (p.bytes + kAlign - 1) / kAlign * kAlign;
  }
  return page;
}

size_t PagedWeights::bytes_of(const Page& page) {
  return page.empty() ? 0 : page.back().at + page.back().bytes;
}

size_t PagedWeights::largest(const std::vector<Page>& pages) {
  size_t most = 0;
  for (const Page& p : pages) most = std::max(most, bytes_of(p));
  return most;
}

PageFiles PagedWeights::files_of(const std::vector<Page>& pages) const {
  PageFiles out;
  for (const MappedFile* f : files_) out.files.push_back(PageFile::source(f->path(), f->id()));
  for (const Page& page : pages) {
    std::vector<PageExtent>& extents = out.pages.emplace_back();
    for (const Piece& p : page)
      extents.push_back({p.file, static_cast<uint64_t>(p.begin - files_[p.file]->data()), p.bytes, p.at});
  }
  return out;
}

void PagedWeights::connect(std::initializer_list<const Trace*> traces, const Through& through) {
  const auto backend = [&](const Pager& pager, const std::vector<Page>& pages) {
    return file_pages(files_of(pages), pager.slots());
  };
  std::unique_ptr<PageBackend> blocks = backend(blocks_, block_pages_), head = backend(head_, head_page_);
  size_t least = SIZE_MAX;
  for (const Page& p : block_pages_) least = std::min(least, bytes_of(p));
  bandwidth_ =
      measured_bandwidth(*blocks, std::min<uint32_t>(4, static_cast<uint32_t>(block_pages_.size())), least);
  if (through) {
    blocks = through(std::move(blocks), blocks_);
    head = through(std::move(head), head_);
  }
  blocks_.connect(std::move(blocks), traces);
  head_.connect(std::move(head), traces);
  const auto* const table = static_cast<const std::byte*>(model_->embed().data);
  for (const MappedFile* f : files_)
    if (f->contains(table)) {
      embedding_ = PageFile::cached(f->path(), f->id());
      embedding_offset_ = static_cast<uint64_t>(table - f->data());
    }
}

PageTraffic PagedWeights::traffic() const {
  PageTraffic sum = blocks_.traffic();
  sum += head_.traffic();
  return sum;
}

PageTraffic PagedWeights::planned(const Trace& trace) const {
  PageTraffic sum = blocks_.planned(trace);
  sum += head_.planned(trace);
  return sum;
}

void PagedWeights::rebase(WeightView& w, const Page& page, std::byte* slot) const {
  for_each_part(w, [&](auto*& p, size_t) {
    const auto* const data = reinterpret_cast<const std::byte*>(p);
    for (const Piece& piece : page)
      if (data >= piece.begin && data < piece.begin + piece.bytes) {
        p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(slot + piece.at + (data - piece.begin));
        return;
      }
  });
}

PagedWeights::Pass::Pass(Exec& e, const Model& model, PagedWeights* pages, const DeviceWeights* device)
    : exec_(e), model_(model), pages_(pages), device_(device) {
  if (pages_ != nullptr) blocks_.emplace(pages_->blocks_, e);
}

BlockWeights PagedWeights::Pass::acquire(int block) {
  BlockWeights w = device_ != nullptr ? device_->block(block) : model_.block(block);
  if (pages_ == nullptr) return w;
  if (block == pages_->head_from_ && !head_done_ && !head_) head_.emplace(pages_->head_, exec_);
  const Page& page = pages_->block_pages_[static_cast<size_t>(block)];
  std::byte* const slot = blocks_->acquire(static_cast<uint32_t>(block), bytes_of(page), Access::read);
  for (WeightView& v : w.linear) pages_->rebase(v, page, slot);
  return w;
}

void PagedWeights::Pass::release(int block) {
  if (pages_ != nullptr) blocks_->release(static_cast<uint32_t>(block));
}

WeightView PagedWeights::Pass::head() {
  WeightView w = device_ != nullptr ? device_->head() : model_.head();
  if (pages_ == nullptr) return w;
  const Page& page = pages_->head_page_.front();
  pages_->rebase(w, page, head_->acquire(0, bytes_of(page), Access::read));
  return w;
}

void PagedWeights::Pass::release_head() {
  if (pages_ == nullptr) return;
  head_->release(0);
  head_->end();
  head_.reset();
  head_done_ = true;
}

void PagedWeights::Pass::embedding_rows(std::span<const int32_t> ids, float scale, const BlockBatch& batch,
                                        const Mat& y) {
  WeightView table = model_.embed();
  const bool in_file =
      pages_ != nullptr &&
      (pages_->files_.empty() || std::any_of(pages_->files_.begin(), pages_->files_.end(),
                                             [&](const MappedFile* f) { return f->contains(table.data); }));
  const bool looked_up = exec_.on_cuda() && !model_.desc().tied;  // no card holds what is no head
  if (!in_file && !looked_up)
    return embedding(exec_, ids, device_ != nullptr ? device_->embed() : table, scale, y);
  const int64_t tokens = static_cast<int64_t>(ids.size()), vocab = table.rows;
  if (!in_file)  // pinned memory for a tile, not for all
    return exec_.loop(batch.tiles, batch.whole_tiles, [&](int64_t t) {
      const int64_t begin = std::min(t * batch.tile_rows, tokens), n = std::min(batch.tile_rows, tokens - begin);
      embedding_of_host(exec_, ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)), table, scale,
                        y.row_range(begin, n));
    });
  const auto row_bytes = static_cast<size_t>(table.code_bytes()) / static_cast<size_t>(table.rows);
  const Buffer rows = exec_.allocate(Region::staging, "embedding rows",
                                     static_cast<size_t>(std::min(tokens, batch.tile_rows)) * row_bytes);
  const Buffer places = exec_.allocate(Region::staging, "embedding places",
                                       static_cast<size_t>(std::min(tokens, batch.tile_rows)) * sizeof(int32_t));
  table.data = rows.data();
  exec_.loop(batch.tiles, batch.whole_tiles, [&](int64_t t) {
    const int64_t begin = std::min(t * batch.tile_rows, tokens), n = std::min(batch.tile_rows, tokens - begin);
    table.rows = n;
    for (int64_t i = 0; i < n && !exec_.rehearsing(); ++i) {
      const int32_t id = ids[static_cast<size_t>(begin + i)];
      check(id >= 0 && id < vocab, "embedding: id ", id, " of ", vocab);
      pages_->embedding_->read(pages_->embedding_offset_ + static_cast<size_t>(id) * row_bytes,
                               rows.as<std::byte>() + static_cast<size_t>(i) * row_bytes, row_bytes);
      places.as<int32_t>()[i] = static_cast<int32_t>(i);
    }
    embedding(exec_, {places.as<const int32_t>(), static_cast<size_t>(n)}, table, scale,
              y.row_range(begin, n));
  });
}

void PagedWeights::Pass::end() {
  if (pages_ != nullptr) blocks_->end();
}

}  // namespace qlora
