#include "kernels/common/isa.h"

#include <cstdlib>
#include <optional>

#include "memory/error.h"

namespace qlora {
namespace {

std::optional<Isa>& chosen() {
  static std::optional<Isa> isa;
  return isa;
}

Isa widest() {
  for (Isa i : {Isa::avx512, Isa::avx2})
    if (supported(i)) return i;
  return Isa::scalar;
}

Isa from_environment(const std::string& name) {
  for (Isa i : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (name != name_of(i)) continue;
    if (!supported(i))
      fail(Category::usage, "QLORA_ISA=", name, ": this CPU does not have it; its widest is ",
           name_of(widest()));
    return i;
  }
  if (name == "avx512bf16" || name == "amx")
    fail(Category::usage, "QLORA_ISA=", name, ": not built yet; use avx512, avx2 or scalar");
  fail(Category::usage, "QLORA_ISA=", name, ": unknown; use avx512, avx2 or scalar");
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
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
