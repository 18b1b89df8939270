#include "kernels/common/isa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/common/cpu_facts.h"
#include "memory/error.h"

namespace qlora {
namespace {

constexpr CpuFacts::Leaf kIntel{0x20, 0x756e6547, 0x6c65746e, 0x49656e69};
constexpr CpuFacts::Leaf kAmd{0x10, 0x68747541, 0x444d4163, 0x69746e65};

// What CPUs answer, of leaves 0, 1, 7.0 and 7.1, as published dumps have it (InstLatx64; the last line is a
// virtual machine of this project's), and XCR0 with all that they can save.
struct Recorded {
  const char* name;
  CpuFacts cpu;
  Isa isa;
  std::vector<Isa> refused;
};
std::vector<Recorded> recorded() {
  using enum Isa;
  return {
      {"Zen3_Ryzen5950X",
       {kAmd, {0x00a20f10, 0x00200800, 0x7ed8320b, 0x178bfbff}, {0, 0x219c97a9, 0x0040068c, 0x10}, {}, 0x207},
       avx2,
       {avx512, avx512bf16, amx}},
      {"Zen3_Epyc7763",
       {kAmd, {0x00a00f11, 0x00400800, 0x7eda320b, 0x178bfbff}, {0, 0x219c97a9, 0x0040068c, 0x10}, {}, 0x207},
       avx2,
       {avx512, avx512bf16, amx}},
      {"Zen4_Ryzen7600X",
       {kAmd,
        {0x00a60f12, 0x000c0800, 0x7ef8320b, 0x178bfbff},
        {1, 0xf1bf97a9, 0x00405fce, 0x10000010},
        {0x20},
        0x2e7},
       avx512bf16,
       {amx}},
      {"Zen4_Epyc9654",
       {kAmd,
        {0x00a10f11, 0x00c00800, 0x7efa320b, 0x178bfbff},
        {1, 0xf1bf97a9, 0x00415fce, 0x10000010},
        {0x20},
        0x2e7},
       avx512bf16,
       {amx}},
      {"Zen5_Ryzen9950X",
       {kAmd,
        {0x00b40f40, 0x00200800, 0x7ed8320b, 0x178bfbff},
        {1, 0xf1bf97ab, 0x19405fce, 0x10000110},
        {0x30},
        0x2e7},
       avx512bf16,
       {amx}},
      {"Zen5_Epyc9655",
       {kAmd,
        {0x00b00f21, 0x00400800, 0x7efa320b, 0x178bfbff},
        {1, 0xf1bf97ab, 0x19415fce, 0x10000110},
        {0x30},
        0x2e7},
       avx512bf16,
       {amx}},
      {"Haswell_i7_4770",
       {kIntel, {0x000306c3, 0x00100800, 0x7ffafbff, 0xbfebfbff}, {0, 0x27ab, 0, 0}, {}, 0x7},
       avx2,
       {avx512, avx512bf16, amx}},
      // AVX512F without the bytes, words and shorter registers that bodies use.
      {"KnightsLanding_7210",
       {kIntel, {0x00050671, 0x08ff0800, 0x7ff8f39f, 0xbfebfbff}, {0, 0x1c0d23ab, 1, 0x04000000}, {}, 0xe7},
       avx2,
       {avx512, avx512bf16, amx}},
      {"IceLake_i7_1065G7",
       {kIntel,
        {0x000706e5, 0x00100800, 0x7ffafbbf, 0xbfebfbff},
        {0, 0xf2bf27ef, 0x40405f4e, 0xbc000410},
        {},
        0x2e7},
       avx512,
       {avx512bf16, amx}},
      {"AlderLake_i7_12700",
       {kIntel,
        {0x00090672, 0x00800800, 0x7ffafbbf, 0xbfebfbff},
        {2, 0x239c27eb, 0x98c007ac, 0xfc18c410},
        {0x00400810},
        0x207},
       avx2,
       {avx512, avx512bf16, amx}},
      // AVX-512 switched on, and with it products of bf16, which are slower than those of fp32.
      {"AlderLake_i9_12900K_AVX512",
       {kIntel,
        {0x00090672, 0x00800800, 0x7ffafbff, 0xbfebfbff},
        {1, 0xf3bfa7eb, 0x98c07fee, 0xfc9cc510},
        {0x00401c30},
        0x2e7},
       avx512,
       {amx}},
      {"SapphireRapids_w7_2475X",
       {kIntel,
        {0x000806f8, 0x00800800, 0x7ffefbff, 0xbfebfbff},
        {2, 0xf3bfbffb, 0xbb417fee, 0xffdd4430},
        {0x1c30},
        0x602e7,
        true},
       amx,
       {}},
      {"GraniteRapids_658X",
       {kIntel,
        {0x000a06d1, 0x00800800, 0x7ffefbff, 0xbfebfbff},
        {2, 0xf3bfbffb, 0xbb417fee, 0xffdd4430},
        {0x40201d30, 1, 0, 0xe4000},
        0x602e7,
        true},
       amx,
       {}},
      {"VirtualXeon",
       {kIntel,
        {0x000a0671, 0x01020800, 0xfffa3203, 0x1f8bfbff},
        {2, 0xf1bf2ffb, 0x1a415f46, 0x23c14010},
        {0x1c30, 0, 0, 0x84000},
        0x600e7,
        true},
       amx,
       {}},
      {"NoCpuid", {}, scalar, {avx2, avx512, avx512bf16, amx}},
  };
}

class RecordedCpu : public ::testing::TestWithParam<Recorded> {};
INSTANTIATE_TEST_SUITE_P(Isa, RecordedCpu, ::testing::ValuesIn(recorded()),
                         [](const auto& info) { return std::string(info.param.name); });

std::string refusal(Isa isa, const CpuFacts& cpu) {
  try {
    EXPECT_EQ(isa_named(name_of(isa), cpu), isa);
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::usage);
    return e.what();
  }
  return "";
}

TEST_P(RecordedCpu, GetsItsIsa) {
  EXPECT_STREQ(name_of(default_isa(GetParam().cpu)), name_of(GetParam().isa));
}

TEST_P(RecordedCpu, IsRefusedWhatItLacks) {
  const CpuFacts& cpu = GetParam().cpu;
  for (const Isa isa : kIsas) {
    const bool refused =
        std::find(GetParam().refused.begin(), GetParam().refused.end(), isa) != GetParam().refused.end();
    const std::string message = refusal(isa, cpu);
    EXPECT_EQ(!message.empty(), refused) << name_of(isa) << ": " << message;
    if (message.empty()) continue;
    EXPECT_EQ(message.find('\n'), message.npos);
    EXPECT_NE(
        message.find("QLORA_ISA=" + std::string(name_of(isa)) + ": this machine lacks " + lacking(isa, cpu)),
        message.npos)
        << message;
  }
}

// Everything that an ISA needs is asked for: without it the ISA is refused by that name, and the choice is
// another.
TEST(IsaTable, EachFeatureCounts) {
  CpuFacts all;
  for (const Recorded& r : recorded())
    if (r.name == std::string("SapphireRapids_w7_2475X")) all = r.cpu;
  struct Without {
    const char* name;
    void (*take)(CpuFacts&);
    Isa isa;  // the narrowest that needs it
  };
  const Without cases[] = {
      {"FMA", [](CpuFacts& c) { c.version.ecx &= ~(1u << 12); }, Isa::avx2},
      {"F16C", [](CpuFacts& c) { c.version.ecx &= ~(1u << 29); }, Isa::avx2},
      {"AVX2", [](CpuFacts& c) { c.features.ebx &= ~(1u << 5); }, Isa::avx2},
      {"a system that saves 256-bit registers", [](CpuFacts& c) { c.saved &= ~4u; }, Isa::avx2},
      {"AVX512F", [](CpuFacts& c) { c.features.ebx &= ~(1u << 16); }, Isa::avx512},
      {"AVX512DQ", [](CpuFacts& c) { c.features.ebx &= ~(1u << 17); }, Isa::avx512},
      {"AVX512BW", [](CpuFacts& c) { c.features.ebx &= ~(1u << 30); }, Isa::avx512},
      {"AVX512VL", [](CpuFacts& c) { c.features.ebx &= ~(1u << 31); }, Isa::avx512},
      {"a system that saves 512-bit registers", [](CpuFacts& c) { c.saved &= ~0x80u; }, Isa::avx512},
      {"AVX512_BF16", [](CpuFacts& c) { c.features1.eax &= ~(1u << 5); }, Isa::avx512bf16},
      {"AMX-BF16", [](CpuFacts& c) { c.features.edx &= ~(1u << 22); }, Isa::amx},
      {"AMX-TILE", [](CpuFacts& c) { c.features.edx &= ~(1u << 24); }, Isa::amx},
      {"a system that saves tile registers", [](CpuFacts& c) { c.saved &= ~0x40000u; }, Isa::amx},
      {"the system's leave to use tile registers", [](CpuFacts& c) { c.tiles_granted = false; }, Isa::amx},
  };
  for (const Without& w : cases) {
    CpuFacts cpu = all;
    w.take(cpu);
    for (const Isa isa : kIsas) EXPECT_EQ(lacking(isa, cpu), isa < w.isa ? "" : w.name) << name_of(isa);
    EXPECT_LT(default_isa(cpu), w.isa) << w.name;
  }
}

// Products of bf16 are the faster ones on AMD's CPUs alone, and of those on the families that were measured.
TEST(IsaTable, VendorAndFamilyCount) {
  CpuFacts zen4;
  for (const Recorded& r : recorded())
    if (r.name == std::string("Zen4_Epyc9654")) zen4 = r.cpu;
  EXPECT_EQ(zen4.vendor_name(), "AuthenticAMD");
  EXPECT_EQ(zen4.family(), 0x19);
  CpuFacts intel = zen4, later = zen4;
  intel.vendor = kIntel;
  EXPECT_EQ(default_isa(intel), Isa::avx512);
  later.version.eax += 2u << 20;
  EXPECT_EQ(later.family(), 0x1b);
  EXPECT_EQ(default_isa(later), Isa::avx512);
}

TEST(IsaTable, UnknownNameIsRefused) {
  for (const char* name : {"avx", "AVX512", "amx ", ""}) {
    try {
      isa_named(name, this_cpu());
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_EQ(e.what(),
                "QLORA_ISA=" + std::string(name) + ": unknown; use amx, avx512bf16, avx512, avx2 or scalar");
    }
  }
}

TEST(IsaTable, ThisMachineRunsItsOwn) {
  EXPECT_TRUE(supported(default_isa(this_cpu())));
  EXPECT_EQ(read_cpu().features.ebx, this_cpu().features.ebx);
#if defined(__x86_64__)
  EXPECT_EQ(supported(Isa::avx2), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(supported(Isa::avx512), __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"));
#endif
}

}  // namespace
}  // namespace qlora
