#include "kernels/gemm/decode_ahead.h"

#include <algorithm>

#include "memory/cuda/host.h"

namespace qlora {

struct DecodeAhead::Side {
  explicit Side(const Device& device)
      : exec(device, 1, nullptr),
        begun(device.index),
        filled(device.index),
        free{cuda::Event(device.index), cuda::Event(device.index)} {}
  Exec exec;
  cuda::Event begun, filled;
  std::array<cuda::Event, 2> free;  // behind the last product of each panel
};

DecodeAhead::DecodeAhead() = default;
DecodeAhead::~DecodeAhead() = default;

void DecodeAhead::start(const Device& device) { side_ = std::make_unique<Side>(device); }

DecodeAhead::Pass::Pass(DecodeAhead* ahead, Exec& e) : ahead_(ahead) {
  if (ahead_ == nullptr) return;
  for (size_t i = 0; i < ahead_->panels_.size(); ++i) {
    if (e.rehearsing()) ahead_->spans_[i] = e.trace().spans.size();
    ahead_->panels_[i] = e.allocate(Region::workspace, "decoded ahead", ahead_->bytes_);
  }
  ahead_->turn_ = 0;
  ahead_->passing_ = true;
  if (e.rehearsing()) return;
  // What had the panels' memory before may still be computed with.
  check(ahead_->side_ != nullptr, "decoding ahead was not started");
  ahead_->side_->begun.record(e.stream());
  ahead_->stream().stream().wait(ahead_->side_->begun);
}

// Every panel that was filled has been waited for: what takes their memory next comes behind.
DecodeAhead::Pass::~Pass() {
  if (ahead_ == nullptr) return;
  ahead_->passing_ = false;
  for (Buffer& b : ahead_->panels_) b.reset();
}

void DecodeAhead::ask(Exec& e, size_t bytes) {
  check(passing_, "decoding ahead outside of a pass");
  if (!e.rehearsing()) return check(bytes <= bytes_, "a panel of ", bytes_, " bytes for ", bytes);
  bytes_ = std::max(bytes_, (bytes + Trace::kAlign - 1) / Trace::kAlign * Trace::kAlign);
  for (const size_t s : spans_) {
    Span& span = e.trace().spans[s];
    span.bytes = std::max(span.bytes, bytes_);
  }
}

std::byte* DecodeAhead::take() {
  turn_ = 1 - turn_;
  stream().stream().wait(side_->free[turn_]);
  return panels_[turn_].as<std::byte>();
}

Exec& DecodeAhead::stream() { return side_->exec; }

void DecodeAhead::filled(Exec& e) {
  side_->filled.record(stream().stream());
  e.stream().wait(side_->filled);
}

void DecodeAhead::read(Exec& e) { side_->free[turn_].record(e.stream()); }

}  // namespace qlora
