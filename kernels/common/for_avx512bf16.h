// Compiles the body named by QLORA_AVX512BF16_BODY for the ISA avx512bf16, in the namespace
// qlora::avx512bf16, where the machine is an x86-64. After kernels/common/for_each_isa.h, whose avx512
// functions it may call.
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::avx512bf16 {
#include "kernels/common/panels_bf16.inl"
#include "kernels/common/tiles_avx512bf16.inl"
#include QLORA_AVX512BF16_BODY
}  // namespace qlora::avx512bf16
#pragma GCC pop_options

// The address of a function that amx's body has too, where the ISA in force is one of the two.
#define QLORA_PICK_BF16(function) \
  (::qlora::active_isa() == ::qlora::Isa::amx ? &::qlora::amx::function : &::qlora::avx512bf16::function)
#endif
#undef QLORA_AVX512BF16_BODY
