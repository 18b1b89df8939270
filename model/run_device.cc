#include "model/run_device.h"

#include <algorithm>

#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm_choice.h"

namespace qlora {

RunDevice RunDevice::with_copy(int card, const Model& model, DType compute, int threads) {
  if (compute == DType::bf16 && cuda_gemm() != CudaGemm::own) cuda::start_matmul(card);
  cuda::Stream stream(card);
  return {{DeviceKind::cuda, card}, threads, std::make_shared<const DeviceWeights>(model, stream)};
}

void RunMemory::plan(Trace& state, std::initializer_list<Trace*> phases) {
  state.lay_out();
  bytes_ = state.bytes;
  host_bytes_ = state.host_bytes;
  for (Trace* t : phases) {
    t->lay_out();
    t->base = state.bytes;
    t->host_base = state.host_bytes;
    bytes_ = std::max(bytes_, t->base + t->bytes);
    host_bytes_ = std::max(host_bytes_, t->host_base + t->host_bytes);
  }
}

std::unique_ptr<Exec> RunMemory::reserve(const RunDevice& on) {
  if (!on.on_card()) {
    arena_ = Arena(bytes_);
    return std::make_unique<Exec>(on.device, on.threads, arena_.data());
  }
  card_ = cuda::Memory::allocate(cuda::MemoryKind::device, on.device.index, bytes_);
  if (!card_)
    fail(Category::memory, "the card has no room for ", bytes_,
         " bytes of activations and caches; end what else uses it (nvidia-smi), take fewer or shorter rows, "
         "or run on the CPU (--device cpu)");
  pinned_ = cuda::Memory::allocate(cuda::MemoryKind::pinned, on.device.index, host_bytes_);
  if (!pinned_)
    fail(Category::memory, "the system grants no pinned memory of ", host_bytes_,
         " bytes, for locked memory is limited; raise the limit (ulimit -l)");
  return std::make_unique<Exec>(on.device, on.threads, card_.data(), pinned_.data());
}

size_t RunAdapter::bytes() const {
  return host_.layout == nullptr ? 0 : static_cast<size_t>(host_.layout->size()) * sizeof(float);
}

void RunAdapter::allocate(Exec& e) {
  if (!e.on_cuda() || bytes() == 0) return;
  copy_ = e.allocate(Region::adapter, "adapter", bytes());
  if (e.rehearsing()) return;
  e.stream().copy(copy_.data(), host_.params, bytes());
  e.stream().synchronize();
}

AdapterView RunAdapter::view() const {
  AdapterView v = host_;
  if (copy_) v.params = copy_.as<float>();
  return v;
}

}  // namespace qlora
