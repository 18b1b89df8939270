#include "kernels/common/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <iterator>
#include <optional>

#include "memory/error.h"

namespace qlora {
namespace {

std::optional<Isa>& chosen() {
  static std::optional<Isa> isa;
  return isa;
}

Isa widest() {
  for (size_t i = std::size(kIsas); i-- > 1;)
    if (supported(kIsas[i])) return kIsas[i];
  return Isa::scalar;
}

Isa from_environment(const std::string& name) {
  for (Isa i : kIsas) {
    if (name != name_of(i)) continue;
    if (!supported(i))
      fail(Category::usage, "QLORA_ISA=", name, ": this CPU does not have it; its widest is ",
           name_of(widest()));
    return i;
  }
  if (name == "avx512bf16")
    fail(Category::usage, "QLORA_ISA=", name, ": not built yet; use amx, avx512, avx2 or scalar");
  fail(Category::usage, "QLORA_ISA=", name, ": unknown; use amx, avx512, avx2 or scalar");
}

#if defined(__x86_64__)
// The tiles' registers are large: Linux gives them to those who ask (since 5.16; XFEATURE_XTILEDATA).
bool tiles_granted() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0)
    return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kAvx512Bf16) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
  }
  return "?";
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::amx: {
      static const bool granted = tiles_granted();
      return supported(Isa::avx512) && granted;
    }
  }
  return false;
#else
  return isa == Isa::scalar;
#endif
}

Isa active_isa() {
  if (!chosen()) {
    const char* name = std::getenv("QLORA_ISA");
    chosen() = name != nullptr && *name != 0 ? from_environment(name) : widest();
  }
  return *chosen();
}

void set_active_isa(Isa isa) {
  check(supported(isa), "this CPU has no ", name_of(isa));
  chosen() = isa;
}

}  // namespace qlora
