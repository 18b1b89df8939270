#pragma once
#include <array>
#include <cstdint>
#include <optional>

#include "memory/cuda/host.h"
#include "memory/exec.h"
#include "model/decoder.h"
#include "train/data/batches.h"

namespace qlora {

// Batches on their way to a CUDA device, and the losses that come back: pinned memory that kernels read where
// it lies, two batches of it, so that the host lays one out while the device is at the other. What belongs to
// a batch stays until an event says that the device is past it; nobody waits for the stream itself.
class BatchSlots {
 public:
  // Room in the phase in force, for batches up to `largest`.
  void allocate(Exec& e, const BatchMaxima& largest);
  void forget() { memory_.reset(); }  // the rehearsal's handle
  // The batch where both sides reach it, after the device has left the slot. To be passed to the decoder, and
  // followed by sent().
  TokenBatch put(const Batch& batch);
  void sent();
  // Waits for every batch that was sent. The sum of their losses since the last take(), added up batch by
  // batch in their order.
  LossSum take();

 private:
  static constexpr size_t kSlots = 2;
  struct Slot {
    std::optional<cuda::Event> passed;
    bool busy = false;
    std::span<float> losses;
    std::span<uint8_t> hits;
  };
  void collect(Slot& slot);

  cuda::Stream* stream_ = nullptr;
  BatchMaxima largest_;
  Buffer memory_;
  std::array<Slot, kSlots> slots_;
  size_t turn_ = 0;  // the slot that comes next
  LossSum sum_;
};

}  // namespace qlora
