#pragma once
#include <initializer_list>
#include <memory>

#include "memory/cuda/host.h"
#include "memory/exec.h"
#include "model/block.h"
#include "model/decoder.h"
#include "model/device_weights.h"

namespace qlora {

// Where passes that train nothing run: the CPU, or a CUDA device that has the model's weights. Runs share it.
struct RunDevice {
  RunDevice(int threads) : threads(threads) {}  // the CPU
  RunDevice(Device device, int threads, std::shared_ptr<const DeviceWeights> weights)
      : device(device), threads(threads), weights(std::move(weights)) {}
  // A card, with a copy of the weights. Opens what multiplies there. Category::memory when it has no room.
  static RunDevice with_copy(int card, const Model& model, DType compute, int threads);

  Device device;
  int threads;
  std::shared_ptr<const DeviceWeights> weights;  // null on the CPU
  bool on_card() const { return device.kind == DeviceKind::cuda; }
};

// The arenas of a run's phases: `state` lives on, one of the others is in force at a time.
class RunMemory {
 public:
  // Lays out what was rehearsed.
  void plan(Trace& state, std::initializer_list<Trace*> phases);
  size_t bytes() const { return bytes_; }            // on the device
  size_t host_bytes() const { return host_bytes_; }  // pinned, beside a card
  // An Exec over memory as planned, which must not outlive this. Category::memory when there is no room.
  std::unique_ptr<Exec> reserve(const RunDevice& on);

 private:
  size_t bytes_ = 0, host_bytes_ = 0;
  Arena arena_;
  cuda::Memory card_, pinned_;  // instead of it, on a CUDA device
};

// An adapter where a run reads it: the caller's own on the CPU, a copy in the run's state on a card.
class RunAdapter {
 public:
  // `host` must outlive this.
  explicit RunAdapter(const AdapterView& host) : host_(host) {}
  // In the phase in force; on a card the parameters go there, and are waited for.
  void allocate(Exec& e);
  void forget() { copy_.reset(); }  // the rehearsal's handle
  AdapterView view() const;

 private:
  size_t bytes() const;
  AdapterView host_;
  Buffer copy_;
};

}  // namespace qlora
