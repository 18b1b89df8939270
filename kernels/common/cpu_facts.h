#pragma once
#include <cstdint>
#include <string>

namespace qlora {

// What CPUID says of a CPU, and the operating system of its registers. (Intel SDM volume 2, CPUID; AMD APM
// volume 3, appendix E.)
struct CpuFacts {
  struct Leaf {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  };
  Leaf vendor, version, features, features1;  // leaves 0, 1, 7.0 and 7.1; zeros where there is none
  uint64_t saved = 0;          // XCR0: the registers that the system saves; 0 where it does not say
  bool tiles_granted = false;  // the tile registers have been asked for and given

  std::string vendor_name() const;  // "GenuineIntel"; empty where there is no CPUID
  int family() const;               // with the extended one, as vendors count
};

// Asks the CPU, and where it has tile registers the system for them.
CpuFacts read_cpu();
// What read_cpu() said at the first call.
const CpuFacts& this_cpu();

}  // namespace qlora
