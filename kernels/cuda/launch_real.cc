#include <cuda_runtime.h>

#include <source_location>

#include "memory/error.h"

// What device_nvcc.inl leaves to the host.
namespace qlora::cuda {
namespace {

void verify(cudaError_t error, std::source_location where) {
  if (error == cudaSuccess) [[likely]]
    return;
  fail(Category::io, where.file_name(), ":", where.line(), ": launch: ", cudaGetErrorString(error), " (",
       cudaGetErrorName(error), "); check the card and its driver (nvidia-smi)");
}

}  // namespace

void verify_launch(std::source_location where) { verify(cudaGetLastError(), where); }

void allow_shared(const void* entry, size_t bytes, std::source_location where) {
  verify(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
         where);
}

}  // namespace qlora::cuda
