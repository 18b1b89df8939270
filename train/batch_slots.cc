#include "train/batch_slots.h"

#include <algorithm>

namespace qlora {
namespace {

// Arrays end to end, each on 64 bytes; without memory their bytes alone.
class Layout {
 public:
  explicit Layout(std::byte* begin) : begin_(begin) {}
  template <class T>
  std::span<T> next(int64_t count) {
    auto* const at = begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + bytes_);
    const std::span<T> out(at, static_cast<size_t>(count));
    bytes_ += (out.size_bytes() + Trace::kAlign - 1) / Trace::kAlign * Trace::kAlign;
    return out;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* begin_;
  size_t bytes_ = 0;
};

// A slot's arrays.
struct Arrays {
  std::span<int32_t> ids, positions, cu_seqlens, loss_rows, targets;
  std::span<uint64_t> places;
  std::span<float> losses;
  std::span<uint8_t> hits;
  size_t bytes;
  Arrays(std::byte* at, const BatchMaxima& m) {
    Layout l(at);
    ids = l.next<int32_t>(m.tokens), positions = l.next<int32_t>(m.tokens);
    cu_seqlens = l.next<int32_t>(m.documents + 1);
    loss_rows = l.next<int32_t>(m.loss_rows), targets = l.next<int32_t>(m.loss_rows);
    places = l.next<uint64_t>(m.tokens);
    losses = l.next<float>(m.loss_rows);
    hits = l.next<uint8_t>(m.loss_rows);
    bytes = l.bytes();
  }
};

template <class T>
std::span<T> filled(std::span<T> room, const std::vector<T>& from) {
  check(from.size() <= room.size(), "a batch larger than was planned");
  std::copy(from.begin(), from.end(), room.begin());
  return room.first(from.size());
}

}  // namespace

void BatchSlots::allocate(Exec& e, const BatchMaxima& largest) {
  largest_ = largest;
  const size_t bytes = kSlots * Arrays(nullptr, largest).bytes;
  memory_ = e.allocate(Region::data, "batches", bytes, Place::host);
  if (e.rehearsing()) return;
  stream_ = &e.stream();
  for (Slot& s : slots_) s.passed.emplace(stream_->device());
}

TokenBatch BatchSlots::put(const Batch& b) {
  Slot& s = slots_[turn_];
  collect(s);
  const size_t each = Arrays(nullptr, largest_).bytes;
  const Arrays a(memory_.as<std::byte>() + turn_ * each, largest_);
  TokenBatch out;
  out.ids = filled(a.ids, b.ids);
  out.positions = filled(a.positions, b.positions);
  out.cu_seqlens = filled(a.cu_seqlens, b.cu_seqlens);
  out.places = filled(a.places, b.places);
  out.loss_rows = filled(a.loss_rows, b.loss_rows);
  const std::span<int32_t> targets = a.targets.first(b.loss_rows.size());
  for (size_t i = 0; i < targets.size(); ++i) targets[i] = b.targets[static_cast<size_t>(b.loss_rows[i])];
  out.targets = targets;
  s.losses = a.losses.first(b.loss_rows.size());
  s.hits = a.hits.first(b.loss_rows.size());
  out.losses = s.losses;
  out.hits = s.hits;
  return out;
}

void BatchSlots::sent() {
  slots_[turn_].passed->record(*stream_);
  slots_[turn_].busy = true;
  turn_ = (turn_ + 1) % kSlots;
}

void BatchSlots::collect(Slot& s) {
  if (!s.busy) return;
  s.passed->synchronize();
  s.busy = false;
  sum_ += sum_of(s.losses, s.hits);
}

// From the oldest on.
LossSum BatchSlots::take() {
  for (size_t i = 0; i < kSlots; ++i) collect(slots_[(turn_ + i) % kSlots]);
  return std::exchange(sum_, {});
}

}  // namespace qlora
