#include "kernels/common/cpu_facts.h"

namespace qlora {

const CpuFacts& this_cpu() {
  static const CpuFacts facts = read_cpu();
  return facts;
}

}  // namespace qlora
