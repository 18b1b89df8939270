#include "kernels/cuda/body.h"

#include <cstdlib>
#include <map>
#include <mutex>

#include "memory/cuda/start.h"
#include "memory/error.h"

namespace qlora::cuda {
namespace {

std::mutex mutex;
std::optional<Body> chosen;

Body found(int device) {
  const char* const name = std::getenv("QLORA_CUDA_BODY");
  return name != nullptr && *name != 0 ? cuda_body_of(name) : cuda_body_of(find(device).shared_bytes);
}

}  // namespace

Body cuda_body_of(const std::string& name) {
  if (name == "sm80") return Body::sm80;
  fail(Category::usage, "QLORA_CUDA_BODY=", name, ": unknown; use sm80, or unset it");
}

// A multiprocessor has 1 KiB more than its largest block, and a block costs 1 KiB more than it asks for.
Body cuda_body_of(size_t shared_bytes) {
  return shared_bytes + 1024 >= 2 * (kDeepSharedBytes + 1024) ? Body::deep : Body::sm80;
}

Body cuda_body(int device) {
  static std::map<int, Body> bodies;
  const std::lock_guard lock(mutex);
  if (chosen) return *chosen;
  const auto at = bodies.find(device);
  return at != bodies.end() ? at->second : bodies.emplace(device, found(device)).first->second;
}

void set_cuda_body(std::optional<Body> body) {
  const std::lock_guard lock(mutex);
  chosen = body;
}

}  // namespace qlora::cuda
