#pragma once
#include <memory>
#include <string>

#include "memory/cuda/host.h"
#include "memory/page_backend.h"

namespace qlora {

// Pages of a CUDA device's pager, beside the device: slots are device memory, and the computation is a
// stream. Copies go over two streams of their own, one a direction, joined to the computation by events, so
// the host waits for nothing that lies in pinned memory.
struct CudaPages {
  cuda::Stream* compute = nullptr;  // must outlive the backend
  uint32_t pages = 0;
  size_t page_bytes = 0;
  int channels = 0;
};

// Pages in pinned host memory, as far as `pinned_budget` goes and the system grants it; the others are
// pageable and pass through a pinned staging buffer for each channel. Pages read as zero bytes at first.
// Category::memory when not even the staging buffers are granted.
std::unique_ptr<PageBackend> pinned_pages(const CudaPages& pages, size_t pinned_budget);

// Pages in managed memory, prefetched to the device before they are copied, and back after. Null, with the
// reason, where the device has no concurrent managed access or less memory free than the pages take.
std::unique_ptr<PageBackend> managed_pages(const CudaPages& pages, std::string& why_not);

}  // namespace qlora
