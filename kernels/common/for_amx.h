// Compiles the body named by QLORA_AMX_BODY for the ISA amx, in the namespace qlora::amx, where the machine
// is an x86-64. After kernels/common/for_each_isa.h, whose avx512 functions it may call.
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target( \
    "amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::amx {
#include "kernels/common/panels_bf16.inl"
#include "kernels/common/tiles_amx.inl"
#include QLORA_AMX_BODY
}  // namespace qlora::amx
#pragma GCC pop_options
#endif
#undef QLORA_AMX_BODY
