#pragma once
#include <string>

namespace qlora {

// Each name is one arithmetic: on one of them a machine always computes the same bits.
enum class Isa : unsigned char { scalar, avx2, avx512, amx };  // amx: avx512, with bf16 products on tiles
inline constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx};  // narrow to wide

const char* name_of(Isa isa);
// Whether this CPU (and its operating system) runs it.
bool supported(Isa isa);
// The one in force: QLORA_ISA where set (refused, Category::usage, when unknown, unsupported or not built),
// else the widest that the CPU has, by CPUID alone, never by timing. Fixed at the first call.
Isa active_isa();
// Changes the one in force, for tests that go through all of them.
void set_active_isa(Isa isa);

}  // namespace qlora
