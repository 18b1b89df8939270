#pragma once
#include <string>

namespace qlora {

struct CpuFacts;

// Each name is one arithmetic: on one of them a machine always computes the same bits. avx512bf16 and amx are
// avx512, with bf16 products by vdpbf16ps and on tiles.
enum class Isa : unsigned char { scalar, avx2, avx512, avx512bf16, amx };
inline constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx};

// Whether it has bodies of its own for products of bf16.
inline bool multiplies_bf16(Isa isa) { return isa >= Isa::avx512bf16; }

const char* name_of(Isa isa);
// What a machine lacks to run it, "AVX512_BF16, AMX-TILE"; empty where nothing.
std::string lacking(Isa isa, const CpuFacts& cpu);
// The one that a machine gets when nobody asks for another: by CPUID alone, never by timing.
Isa default_isa(const CpuFacts& cpu);
// The one so named; refused (Category::usage) when unknown or lacking something.
Isa isa_named(const std::string& name, const CpuFacts& cpu);

// Whether this machine runs it.
bool supported(Isa isa);
// The one in force: QLORA_ISA where set, else the default. Fixed at the first call.
Isa active_isa();
// Changes the one in force, for tests that go through all of them.
void set_active_isa(Isa isa);

}  // namespace qlora
