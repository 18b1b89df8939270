#include "train/moments.h"

#include <algorithm>

namespace qlora {
namespace {

constexpr size_t kAlign = Trace::kAlign;

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

Moments::Moments(const AdapterLayout& adapter, OptimizerKind kind, size_t page_bytes) : kind_(kind) {
  if (kind == OptimizerKind::sgd) return;
  for (const Tensor& t : tensors_of(adapter)) {
    const bool eight = kind == OptimizerKind::adamw_8bit && t.count >= kMin8Bit;
    for (int64_t i = 0; i < t.count; i += kMaxMomentRun)
      add({eight, t.first + i, std::min(kMaxMomentRun, t.count - i), 0, 0}, page_bytes);
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
  const bool full =
      !pages_.empty() && page_bytes > 0 && bytes_of(sum(pages_.back().elements, more)) > page_bytes;
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
  if (kind_ == OptimizerKind::adamw) return "two, fp32";
  const int64_t full = elements(MomentPart::moment1);
  return cat("two, 8 bits in blocks of ", kBlock8,
             full > 0 ? cat("; fp32 for ", full, " parameters in tensors under ", kMin8Bit) : "");
}

void Moments::allocate(Exec& e) { resident_ = e.allocate(Region::moments, "moments", bytes_); }

std::span<std::byte> Moments::slice(const Page& page, std::byte* data, MomentPart part) {
  const auto i = static_cast<size_t>(part);
  return {data + page.offset[i], static_cast<size_t>(page.elements[i]) * size_of(moment_dtype(part))};
}

void Moments::step(Exec& e, const AdamWHyper& hyper, const Page& page, std::byte* data,
                   std::span<float> params, std::span<const float> grads) {
  const auto full = [&](MomentPart part) { return typed<float>(slice(page, data, part)); };
  const auto codes = [&](MomentPart part) { return typed<uint8_t>(slice(page, data, part)); };
  if (kind_ == OptimizerKind::adamw) {
    const auto first = static_cast<size_t>(page.param), count = static_cast<size_t>(page.count);
    adamw(e, hyper, params.subspan(first, count), grads.subspan(first, count), full(MomentPart::moment1),
          full(MomentPart::moment2));
    return;
  }
  adamw8bit(e, hyper, params, grads,
            {page.runs, codes(MomentPart::codes1), codes(MomentPart::codes2), full(MomentPart::absmax1),
             full(MomentPart::absmax2), full(MomentPart::moment1), full(MomentPart::moment2)});
}

void Moments::update(Exec& e, const AdamWHyper& hyper, std::span<float> params,
                     std::span<const float> grads) {
  for (const Page& p : pages_) step(e, hyper, p, resident_.as<std::byte>() + p.at, params, grads);
}

void Moments::save(const std::function<void(MomentPart, std::span<const std::byte>)>& write) const {
  for (const MomentPart part : parts())
    for (const Page& p : pages_)
      if (p.elements[static_cast<size_t>(part)] > 0)
        write(part, slice(p, resident_.as<std::byte>() + p.at, part));
}

void Moments::load(const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill) {
  for (const Page& p : pages_)
    for (const MomentPart part : parts()) {
      const size_t first =
          static_cast<size_t>(p.first[static_cast<size_t>(part)]) * size_of(moment_dtype(part));
      fill(part, first, slice(p, resident_.as<std::byte>() + p.at, part));
    }
}

}  // namespace qlora
