#include "train/moments.h"

#include <algorithm>
#include <optional>

#include "memory/page_backends.h"
#include "memory/page_cuda.h"

namespace qlora {
namespace {

constexpr size_t kAlign = Trace::kAlign;
constexpr size_t kPieceBytes = size_t{1} << 20;  // of a part, between a CUDA device and its host

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

struct Tensor {
  int64_t first, count;
};

// The A's and B's in flat order.
std::vector<Tensor> tensors_of(const AdapterLayout& adapter) {
  std::vector<Tensor> out;
  for (const LoraModule& m : adapter.modules()) {
    out.push_back({m.a, m.rank * m.in});
    out.push_back({m.b, m.out * m.rank});
  }
  std::sort(out.begin(), out.end(), [](const Tensor& a, const Tensor& b) { return a.first < b.first; });
  return out;
}

template <class T>
std::span<T> typed(std::span<std::byte> bytes) {
  return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
}

}  // namespace

const char* name_of(MomentPart part) {
  switch (part) {
    case MomentPart::absmax1:
      return "absmax1";
    case MomentPart::absmax2:
      return "absmax2";
    case MomentPart::moment1:
      return "moment1";
    case MomentPart::moment2:
      return "moment2";
    case MomentPart::codes1:
      return "codes1";
    case MomentPart::codes2:
      return "codes2";
  }
  return "";
}

Moments::Moments(const AdapterLayout& adapter, OptimizerKind kind, const Paging& paging)
    : kind_(kind), paging_(paging) {
  if (kind == OptimizerKind::sgd) return;
  for (const Tensor& t : tensors_of(adapter)) {
    const bool eight = has_8bit(kind) && t.count >= kMin8Bit;
    for (int64_t i = 0; i < t.count; i += kMaxMomentRun)
      add({eight, t.first + i, std::min(kMaxMomentRun, t.count - i), 0, 0},
          may_leave() ? paging.page_bytes : SIZE_MAX);
  }
  place();
}

Moments::Counts Moments::counts_of(const MomentRun& r) {
  const int64_t blocks = (r.count + kBlock8 - 1) / kBlock8;
  return r.eight_bit ? Counts{blocks, blocks, 0, 0, r.count, r.count} : Counts{0, 0, r.count, r.count, 0, 0};
}

size_t Moments::bytes_of(const Counts& elements) {
  size_t bytes = 0;
  for (const MomentPart part : kAllMomentParts)
    bytes += aligned(static_cast<size_t>(elements[static_cast<size_t>(part)]) * size_of(moment_dtype(part)));
  return bytes;
}

void Moments::add(MomentRun run, size_t page_bytes) {
  const Counts more = counts_of(run);
  const auto sum = [](Counts a, const Counts& b) {
    for (size_t i = 0; i < kMomentParts; ++i) a[i] += b[i];
    return a;
  };
  const bool full = !pages_.empty() && bytes_of(sum(pages_.back().elements, more)) > page_bytes;
  if (pages_.empty() || full) {
    pages_.emplace_back();
    pages_.back().param = run.param;
    pages_.back().first = elements_;
  }
  Page& p = pages_.back();
  run.state = p.elements[static_cast<size_t>(run.eight_bit ? MomentPart::codes1 : MomentPart::moment1)];
  run.block = p.elements[static_cast<size_t>(MomentPart::absmax1)];
  p.runs.push_back(run);
  p.count += run.count;
  p.elements = sum(p.elements, more);
  elements_ = sum(elements_, more);
}

// fp32 parts come first, so every slice is aligned to its type.
void Moments::place() {
  for (Page& p : pages_) {
    p.at = bytes_;
    Counts before{};
    for (size_t i = 0; i < kMomentParts; ++i) {
      p.offset[i] = bytes_of(before);
      before[i] = p.elements[i];
    }
    p.bytes = bytes_of(p.elements);
    bytes_ += p.bytes;
  }
}

std::vector<MomentPart> Moments::parts() const {
  std::vector<MomentPart> out;
  for (const MomentPart part : kAllMomentParts)
    if (elements(part) > 0) out.push_back(part);
  return out;
}

std::string Moments::describe() const {
  if (kind_ == OptimizerKind::sgd) return "none";
  const int64_t full = elements(MomentPart::moment1);
  std::string text = "two, fp32";
  if (has_8bit(kind_))
    text = cat("two, 8 bits in blocks of ", kBlock8,
               full > 0 ? cat("; fp32 for ", full, " parameters in tensors under ", kMin8Bit) : "");
  if (pager_ != nullptr)
    text += cat("; ", (bytes_ + (1 << 20) - 1) >> 20, " MiB of them in ",
                paging_.pinned ? "pinned memory" : "a file", ", through ", pager_->slots(),
                " slots of the workspace");
  return text;
}

size_t Moments::largest_page() const {
  size_t most = 0;
  for (const Page& p : pages_) most = std::max(most, p.bytes);
  return most;
}

void Moments::keep_in_memory(bool in_memory) {
  check(in_memory || may_leave(), "moments of an optimizer that is not paged belong into memory");
  pager_.reset();
  if (in_memory) return;
  const int slots = static_cast<int>(std::min<size_t>(pages_.size(), static_cast<size_t>(paging_.slots)));
  pager_ = std::make_unique<Pager>("moments", static_cast<uint32_t>(pages_.size()), largest_page(), slots,
                                   Pager::Life::lasting);
}

size_t Moments::run_count() const {
  size_t runs = 0;
  for (const Page& p : pages_) runs += p.runs.size();
  return runs;
}

void Moments::allocate(Exec& e) {
  if (in_memory()) resident_ = e.allocate(Region::moments, "moments", bytes_);
  if (!e.on_cuda() || !has_8bit(kind_)) return;
  runs_ = e.allocate(Region::data, "moment runs", run_count() * sizeof(MomentRun), Place::host);
  if (e.rehearsing()) return;
  auto* at = runs_.as<MomentRun>();
  for (Page& p : pages_) {
    p.shared = {at, p.runs.size()};
    at = std::copy(p.runs.begin(), p.runs.end(), at);
  }
}

void Moments::connect(std::initializer_list<const Trace*> traces, cuda::Stream* compute) {
  if (in_memory()) return;
  const auto pages = static_cast<uint32_t>(pages_.size());
  if (compute != nullptr && !paging_.open) {
    pager_->connect(
        pinned_pages({compute, pages, pager_->slot_bytes(), pager_->slots()}, pager_->home_bytes()), traces);
    return;
  }
  pager_->connect(paging_.open ? paging_.open(pages, pager_->slot_bytes(), pager_->slots())
                               : file_pages(PageFiles::temporary(paging_.folder, pages, pager_->slot_bytes()),
                                            pager_->slots()),
                  traces);
}

// One pass over pages, wherever they are.
class Moments::Walk {
 public:
  Walk(Moments& moments, Exec& e) : moments_(moments) {
    if (!moments.in_memory()) pass_.emplace(*moments.pager_, e);
  }
  // f(page, its bytes)
  template <class F>
  void visit(size_t index, Access access, F&& f) {
    const Page& page = moments_.pages_[index];
    if (!pass_) {
      f(page, moments_.resident_.as<std::byte>() + page.at);
      return;
    }
    const auto number = static_cast<uint32_t>(index);
    f(page, pass_->acquire(number, page.bytes, access));
    pass_->release(number);
  }
  void end() {
    if (pass_) pass_->end();
  }

 private:
  Moments& moments_;
  std::optional<Pager::Pass> pass_;
};

std::span<std::byte> Moments::slice(const Page& page, std::byte* data, MomentPart part) {
  const auto i = static_cast<size_t>(part);
  return {data + page.offset[i], static_cast<size_t>(page.elements[i]) * size_of(moment_dtype(part))};
}

void Moments::step(Exec& e, const AdamWHyper& hyper, const Page& page, std::byte* data,
                   std::span<float> params, std::span<const float> grads) {
  const auto full = [&](MomentPart part) { return typed<float>(slice(page, data, part)); };
  const auto codes = [&](MomentPart part) { return typed<uint8_t>(slice(page, data, part)); };
  if (!has_8bit(kind_)) {
    const auto first = static_cast<size_t>(page.param), count = static_cast<size_t>(page.count);
    adamw(e, hyper, params.subspan(first, count), grads.subspan(first, count), full(MomentPart::moment1),
          full(MomentPart::moment2));
    return;
  }
  adamw8bit(e, hyper, params, grads,
            {page.reached(), codes(MomentPart::codes1), codes(MomentPart::codes2), full(MomentPart::absmax1),
             full(MomentPart::absmax2), full(MomentPart::moment1), full(MomentPart::moment2)});
}

void Moments::update(Exec& e, const AdamWHyper& hyper, std::span<float> params,
                     std::span<const float> grads) {
  Walk walk(*this, e);
  for (size_t i = 0; i < pages_.size(); ++i)
    walk.visit(i, Access::update,
               [&](const Page& p, std::byte* data) { step(e, hyper, p, data, params, grads); });
  walk.end();
}

namespace {

// Moments' bytes as the host sees them: where they lie, or on a CUDA device in pieces that are copied from
// and to it.
class HostSide {
 public:
  explicit HostSide(Exec& e) : exec_(e) {
    if (e.on_cuda()) piece_ = e.allocate(Region::staging, "moments on their way", kPieceBytes, Place::host);
  }
  // f(piece) for all of them.
  template <class F>
  void read(std::span<const std::byte> bytes, F&& f) const {
    if (!exec_.on_cuda()) return f(bytes);
    for_pieces(bytes, [&](size_t at, size_t n) {
      exec_.stream().copy(piece_.data(), bytes.data() + at, n);
      exec_.stream().synchronize();
      f(std::span<const std::byte>(piece_.as<std::byte>(), n));
    });
  }
  // f(the piece's place, the piece), which it fills.
  template <class F>
  void write(std::span<std::byte> bytes, F&& f) const {
    if (!exec_.on_cuda()) return f(size_t{0}, bytes);
    for_pieces(bytes, [&](size_t at, size_t n) {
      f(at, std::span<std::byte>(piece_.as<std::byte>(), n));
      exec_.stream().copy(bytes.data() + at, piece_.data(), n);
      exec_.stream().synchronize();  // the next piece goes to the same place
    });
  }

 private:
  template <class F>
  void for_pieces(std::span<const std::byte> bytes, F&& f) const {
    for (size_t at = 0; at < bytes.size(); at += kPieceBytes) f(at, std::min(kPieceBytes, bytes.size() - at));
  }
  Exec& exec_;
  Buffer piece_;
};

}  // namespace

void Moments::save(Exec& e, const std::function<void(MomentPart, std::span<const std::byte>)>& write) {
  const HostSide host(e);
  Walk walk(*this, e);
  for (const MomentPart part : parts())
    for (size_t i = 0; i < pages_.size(); ++i) {
      if (pages_[i].elements[static_cast<size_t>(part)] == 0) continue;
      walk.visit(i, Access::read, [&](const Page& p, std::byte* data) {
        if (!e.rehearsing())
          host.read(slice(p, data, part), [&](std::span<const std::byte> piece) { write(part, piece); });
      });
    }
  walk.end();
}

void Moments::load(Exec& e, const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill) {
  const HostSide host(e);
  Walk walk(*this, e);
  for (size_t i = 0; i < pages_.size(); ++i)
    walk.visit(i, Access::write, [&](const Page& p, std::byte* data) {
      for (const MomentPart part : kAllMomentParts) {
        const auto first =
            static_cast<size_t>(p.first[static_cast<size_t>(part)]) * size_of(moment_dtype(part));
        const std::span<std::byte> bytes = slice(p, data, part);
        if (e.rehearsing() || bytes.empty()) continue;
        host.write(bytes, [&](size_t at, std::span<std::byte> piece) { fill(part, first + at, piece); });
      }
    });
  walk.end();
}

}  // namespace qlora
