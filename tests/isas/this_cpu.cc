#include "kernels/common/cpu_facts.h"
#include "kernels/common/isa.h"

namespace qlora {

// Where there is AVX-512, the instructions that are emulated too.
const CpuFacts& this_cpu() {
  static const CpuFacts facts = [] {
    CpuFacts cpu = read_cpu();
    if (!lacking(Isa::avx512, cpu).empty()) return cpu;
    cpu.features1.eax |= 1u << 5;
    cpu.features.edx |= 1u << 22 | 1u << 24;
    cpu.saved |= 0x60000;
    cpu.tiles_granted = true;
    return cpu;
  }();
  return facts;
}

}  // namespace qlora
