// Compiles the body named by QLORA_BODY once per ISA, in the namespaces qlora::scalar, qlora::avx2 and
// qlora::avx512. A target region, not a per-file flag: only what the body itself defines is compiled for the
// ISA, so that the linker can never pick an AVX copy of some shared inline function for a CPU without AVX.
// Include every header the body needs before this one.
//
//   #define QLORA_BODY "kernels/rms_norm/rms_norm_cpu.inl"
//   #include "kernels/common/for_each_isa.h"
//   ... QLORA_DISPATCH(rms_norm_rows, args...) ...
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/common/code_table.h"
#include "kernels/common/intrinsics.h"
#include "kernels/common/isa.h"
#include "memory/dtype.h"

namespace qlora::scalar {
#include "kernels/common/simd_scalar.inl"
#include QLORA_BODY
}  // namespace qlora::scalar

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace qlora::avx2 {
#include "kernels/common/simd_avx2.inl"
#include QLORA_BODY
}  // namespace qlora::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::avx512 {
#include "kernels/common/simd_avx512.inl"
#include QLORA_BODY
}  // namespace qlora::avx512
#pragma GCC pop_options

// Calls `function` of the ISA in force.
#define QLORA_DISPATCH(function, ...)                                                     \
  (::qlora::active_isa() >= ::qlora::Isa::avx512 ? ::qlora::avx512::function(__VA_ARGS__) \
   : ::qlora::active_isa() == ::qlora::Isa::avx2 ? ::qlora::avx2::function(__VA_ARGS__)   \
                                                 : ::qlora::scalar::function(__VA_ARGS__))
// The address of that function: picked once, before threads call it.
#define QLORA_PICK(function)                                                  \
  (::qlora::active_isa() >= ::qlora::Isa::avx512 ? &::qlora::avx512::function \
   : ::qlora::active_isa() == ::qlora::Isa::avx2 ? &::qlora::avx2::function   \
                                                 : &::qlora::scalar::function)
#else
#define QLORA_DISPATCH(function, ...) ::qlora::scalar::function(__VA_ARGS__)
#define QLORA_PICK(function) (&::qlora::scalar::function)
#endif

#undef QLORA_BODY
