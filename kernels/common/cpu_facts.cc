#include "kernels/common/cpu_facts.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qlora {

std::string CpuFacts::vendor_name() const {
  std::string name;
  for (const uint32_t part : {vendor.ebx, vendor.edx, vendor.ecx})
    for (int shift = 0; shift < 32 && part != 0; shift += 8) name += static_cast<char>(part >> shift & 0xff);
  return name;
}

int CpuFacts::family() const {
  const int base = static_cast<int>(version.eax >> 8 & 0xf),
            extended = static_cast<int>(version.eax >> 20 & 0xff);
  return base == 0xf ? base + extended : base;
}

#if defined(__x86_64__)
namespace {

// XCR0, where the system lets programs read it (OSXSAVE).
uint64_t saved_registers(const CpuFacts::Leaf& version) {
  constexpr uint32_t kReadable = 1u << 27;
  if ((version.ecx & kReadable) == 0) return 0;
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Large registers: Linux gives them to those who ask (since 5.16; ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool ask_for_tiles(const CpuFacts::Leaf& features) {
  constexpr uint32_t kTiles = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return (features.edx & kTiles) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

CpuFacts read_cpu() {
  const auto leaf = [](uint32_t number, uint32_t part) {
    CpuFacts::Leaf l;
    if (__get_cpuid_count(number, part, &l.eax, &l.ebx, &l.ecx, &l.edx) == 0) return CpuFacts::Leaf{};
    return l;
  };
  CpuFacts facts{leaf(0, 0), leaf(1, 0), leaf(7, 0), {}};
  if (facts.features.eax >= 1) facts.features1 = leaf(7, 1);
  facts.saved = saved_registers(facts.version);
  facts.tiles_granted = ask_for_tiles(facts.features);
  return facts;
}
#else
CpuFacts read_cpu() { return {}; }
#endif

}  // namespace qlora
