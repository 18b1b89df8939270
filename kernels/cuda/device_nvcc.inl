// device.h for nvcc: PTX.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define QLORA_DEVICE __device__ __forceinline__

namespace qlora::cuda {

QLORA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
QLORA_DEVICE int lane() { return static_cast<int>(threadIdx.x % kWarp); }
QLORA_DEVICE int warp() { return static_cast<int>(threadIdx.x / kWarp); }
QLORA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
QLORA_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
QLORA_DEVICE void barrier() { __syncthreads(); }
QLORA_DEVICE void warp_barrier() { __syncwarp(); }

template <class T>
QLORA_DEVICE T shuffle(T v, int from) {
  return __shfl_sync(~0u, v, from);
}
template <class T>
QLORA_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(~0u, v, mask);
}

template <class T>
class Shared {
 public:
  __device__ explicit Shared(T* data) : data_(data) {}
  // For the host too in words alone: constexpr functions that both sides share take it.
  __host__ QLORA_DEVICE T& operator[](int i) const { return data_[i]; }
  QLORA_DEVICE Shared from(int i) const { return Shared(data_ + i); }
  QLORA_DEVICE uint32_t address(int i) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data_ + i));
  }

 private:
  T* data_;
};

class SharedMemory {
 public:
  QLORA_DEVICE explicit SharedMemory(unsigned char* next) : next_(next) {}
  template <class T>
  QLORA_DEVICE Shared<T> take(int count) {
    T* const data = reinterpret_cast<T*>(next_);
    next_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return Shared<T>(data);
  }

 private:
  unsigned char* next_;
};

template <class T>
QLORA_DEVICE void copy_async16(Shared<T> s, int i, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s.address(i)), "l"(from), "r"(bytes)
               : "memory");
}
QLORA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLatest>
QLORA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLatest) : "memory");
}

QLORA_DEVICE void load_matrices(uint32_t (&r)[4], Shared<bf16> s, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s.address(i))
               : "memory");
}
QLORA_DEVICE void load_matrices_transposed(uint32_t (&r)[4], Shared<bf16> s, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s.address(i))
               : "memory");
}
QLORA_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

QLORA_DEVICE float to_float(float x) { return x; }
QLORA_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
QLORA_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T>
QLORA_DEVICE T from_float(float f) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 x;
    x.bits = __bfloat16_as_ushort(__float2bfloat16_rn(f));
    return x;
  } else {
    return f;
  }
}
QLORA_DEVICE uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
}

QLORA_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
QLORA_DEVICE float sqrt(float x) { return __fsqrt_rn(x); }
QLORA_DEVICE float exp(float x) { return ::expf(x); }
QLORA_DEVICE double exp(double x) { return ::exp(x); }
QLORA_DEVICE double log(double x) { return ::log(x); }
QLORA_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
QLORA_DEVICE float log(float x) { return ::logf(x); }
QLORA_DEVICE float tanh(float x) { return ::tanhf(x); }
QLORA_DEVICE float max(float a, float b) { return ::fmaxf(a, b); }

// The runtime's last error, if any, is a failure of this launch: made in kernels/cuda/launch_real.cc.
void verify_launch(std::source_location where);
void allow_shared(const void* entry, size_t bytes, std::source_location where);

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, blocks_of<Kernel>()) entry(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) unsigned char memory[];
  kernel(SharedMemory(memory));
}

template <class Kernel>
void launch(Exec& e, Grid grid, size_t shared_bytes, const Kernel& kernel,
            std::source_location where = std::source_location::current()) {
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096 &&
                Kernel::kThreads % kWarp == 0 && shared_of<Kernel>() <= most_shared_of<Kernel>());
  if (grid.x == 0 || grid.y == 0) return;
  make_current(e.stream().device());
  if (shared_bytes > 48 * 1024)
    allow_shared(reinterpret_cast<const void*>(&entry<Kernel>), shared_bytes, where);
  entry<Kernel><<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)), Kernel::kThreads,
                  shared_bytes, static_cast<cudaStream_t>(e.stream().handle())>>>(kernel);
  verify_launch(where);
  observe_launch(e.stream(), typeid(Kernel).name());
}

}  // namespace qlora::cuda
