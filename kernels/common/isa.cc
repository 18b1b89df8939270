#include "kernels/common/isa.h"

#include <cstdlib>
#include <optional>
#include <string_view>

#include "kernels/common/cpu_facts.h"
#include "memory/error.h"

namespace qlora {
namespace {

// What each ISA needs beside what the narrower ones need.
struct Feature {
  Isa isa;
  const char* name;
  CpuFacts::Leaf CpuFacts::*leaf;
  uint32_t CpuFacts::Leaf::*word;
  int bit;
};
using Leaf = CpuFacts::Leaf;
constexpr Feature kFeatures[] = {
    {Isa::avx2, "FMA", &CpuFacts::version, &Leaf::ecx, 12},
    {Isa::avx2, "F16C", &CpuFacts::version, &Leaf::ecx, 29},
    {Isa::avx2, "AVX2", &CpuFacts::features, &Leaf::ebx, 5},
    {Isa::avx512, "AVX512F", &CpuFacts::features, &Leaf::ebx, 16},
    {Isa::avx512, "AVX512DQ", &CpuFacts::features, &Leaf::ebx, 17},
    {Isa::avx512, "AVX512BW", &CpuFacts::features, &Leaf::ebx, 30},
    {Isa::avx512, "AVX512VL", &CpuFacts::features, &Leaf::ebx, 31},
    {Isa::avx512bf16, "AVX512_BF16", &CpuFacts::features1, &Leaf::eax, 5},
    {Isa::amx, "AMX-BF16", &CpuFacts::features, &Leaf::edx, 22},
    {Isa::amx, "AMX-TILE", &CpuFacts::features, &Leaf::edx, 24},
};

// And of the system: bits of XCR0.
struct Registers {
  Isa isa;
  const char* what;
  uint64_t saved;
};
constexpr Registers kRegisters[] = {
    {Isa::avx2, "a system that saves 256-bit registers", 0x6},
    {Isa::avx512, "a system that saves 512-bit registers", 0xe0},
    {Isa::amx, "a system that saves tile registers", 0x60000},
};

// The ISA of a machine that names none: the first line that fits its vendor and family and that it lacks
// nothing for. Figures: GFLOP/s of two cores.
struct Choice {
  std::string_view vendor;  // empty: any
  int first_family, last_family;
  Isa isa;
};
constexpr int kAnyFamily = 0xfff;
constexpr Choice kChoices[] = {
    {"", 0, kAnyFamily, Isa::amx},
    {"AuthenticAMD", 0x19, 0x1a, Isa::avx512bf16},  // Zen 4 and 5: 440 by vdpbf16ps, 230 in fp32
    {"", 0, kAnyFamily, Isa::avx512},               // on Intel: 165 by vdpbf16ps, 328 in fp32
    {"", 0, kAnyFamily, Isa::avx2},
    {"", 0, kAnyFamily, Isa::scalar},
};

std::optional<Isa>& chosen() {
  static std::optional<Isa> isa;
  return isa;
}

// "a, b or c" of what f accepts, the widest first.
template <class F>
std::string names(const F& f) {
  std::string out;
  for (const Isa isa : kIsas)
    if (f(isa)) out = name_of(isa) + (out.empty() ? "" : (out.find(' ') == out.npos ? " or " : ", ") + out);
  return out;
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
    case Isa::avx512bf16:
      return "avx512bf16";
    case Isa::amx:
      return "amx";
  }
  return "?";
}

std::string lacking(Isa isa, const CpuFacts& cpu) {
  std::string out;
  const auto add = [&](const char* what) { out += (out.empty() ? "" : ", ") + std::string(what); };
  for (const Feature& f : kFeatures)
    if (f.isa <= isa && (cpu.*f.leaf.*f.word >> f.bit & 1) == 0) add(f.name);
  for (const Registers& r : kRegisters)
    if (r.isa <= isa && (cpu.saved & r.saved) != r.saved) add(r.what);
  if (isa == Isa::amx && out.empty() && !cpu.tiles_granted) add("the system's leave to use tile registers");
  return out;
}

Isa default_isa(const CpuFacts& cpu) {
  for (const Choice& c : kChoices)
    if ((c.vendor.empty() || c.vendor == cpu.vendor_name()) && cpu.family() >= c.first_family &&
        cpu.family() <= c.last_family && lacking(c.isa, cpu).empty())
      return c.isa;
  return Isa::scalar;
}

Isa isa_named(const std::string& name, const CpuFacts& cpu) {
  for (const Isa isa : kIsas) {
    if (name != name_of(isa)) continue;
    const std::string missing = lacking(isa, cpu);
    if (!missing.empty())
      fail(Category::usage, "QLORA_ISA=", name, ": this machine lacks ", missing, "; use ",
           names([&](Isa i) { return lacking(i, cpu).empty(); }), ", or unset it");
    return isa;
  }
  fail(Category::usage, "QLORA_ISA=", name, ": unknown; use ", names([](Isa) { return true; }));
}

bool supported(Isa isa) { return lacking(isa, this_cpu()).empty(); }

Isa active_isa() {
  if (!chosen()) {
    const char* name = std::getenv("QLORA_ISA");
    chosen() = name != nullptr && *name != 0 ? isa_named(name, this_cpu()) : default_isa(this_cpu());
  }
  return *chosen();
}

void set_active_isa(Isa isa) {
  check(supported(isa), "this machine lacks ", lacking(isa, this_cpu()), " for ", name_of(isa));
  chosen() = isa;
}

}  // namespace qlora
