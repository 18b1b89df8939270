#include "memory/cuda/start.h"

#include "memory/error.h"

namespace qlora::cuda {
namespace {

constexpr char kElse[] = ", or run on the CPU";

// A driver serves every CUDA of its major version ("minor version compatibility", CUDA Compatibility guide);
// the oldest of 13 is 580.
std::string driver_for(int runtime) {
  return runtime / 1000 == 13 ? "580 or newer" : cat("one for CUDA ", version_text(runtime));
}

}  // namespace

std::string version_text(int v) { return v == 0 ? "" : cat(v / 1000, ".", v % 1000 / 10); }

std::string refusal(const Found& f, int device) {
  if (!f.built) return cat("this program was built without CUDA; build it with tools/build --cuda", kElse);
  if (f.driver == 0)
    return cat("no NVIDIA driver is loaded; install driver ", driver_for(f.runtime),
               " (this program has CUDA ", version_text(f.runtime), ")", kElse);
  if (f.driver / 1000 < f.runtime / 1000)
    return cat("the NVIDIA driver is too old: it serves CUDA ", version_text(f.driver), ", this program has ",
               version_text(f.runtime), "; install driver ", driver_for(f.runtime), kElse);
  if (!f.failure.empty())
    return cat("the NVIDIA driver does not start: ", f.failure, "; see what nvidia-smi says", kElse);
  if (f.devices == 0)
    return cat("the NVIDIA driver shows no card; see nvidia-smi and CUDA_VISIBLE_DEVICES", kElse);
  if (device < 0 || device >= f.devices)
    return cat("there ",
               f.devices == 1 ? "is one card, cuda:0"
                              : cat("are ", f.devices, " cards, cuda:0 to cuda:", f.devices - 1),
               "; give one of these", kElse);
  if (f.major < 8)
    return cat(f.name, " has compute capability ", f.major, ".", f.minor, " (sm_", f.major, f.minor,
               "), which needs fp16 compute, which is not built; take a card of 8.0 (Ampere) or newer",
               kElse);
  return "";
}

void require_device(int device) {
  const std::string why = refusal(find(device), device);
  if (!why.empty()) fail(Category::usage, "cuda:", device, ": ", why);
}

}  // namespace qlora::cuda
