#pragma once
#include <cstddef>
#include <cstdint>

// What is called of cuBLASLt's C interface: libcublasLt.so.13, as its cublasLt.h and the reference
// "cuBLAS 13.0, Using the cuBLASLt API" give it. Written down here, so that a build needs nothing of a
// library of half a gigabyte; cublaslt_real.cc compares where the header is there.
namespace qlora::cuda::lt {

using Status = int;  // cublasStatus_t
inline constexpr Status kSuccess = 0, kNotSupported = 15;

using Handle = void*;      // cublasLtHandle_t
using Product = void*;     // cublasLtMatmulDesc_t
using Layout = void*;      // cublasLtMatrixLayout_t
using Preference = void*;  // cublasLtMatmulPreference_t

struct Algo {  // cublasLtMatmulAlgo_t
  uint64_t data[8];
};
struct Proposal {  // cublasLtMatmulHeuristicResult_t
  Algo algo;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

// cublasComputeType_t, cudaDataType, cublasOperation_t
inline constexpr int kCompute32F = 68;
inline constexpr int kFloat = 0, kBf16 = 14;
inline constexpr int kAsItLies = 0, kTransposed = 1;
// cublasLtMatmulDescAttributes_t
inline constexpr int kFirstOp = 3, kSecondOp = 4;
// cublasLtMatmulPreferenceAttributes_t; cublasLtReductionScheme_t: bits
inline constexpr int kMaxWorkspace = 1, kReductionSchemes = 3, kAlignments[] = {5, 6, 7, 8};
inline constexpr uint32_t kNoReduction = 0, kReductionInComputeType = 2;
// cublasLtMatmulAlgoConfigAttributes_t
inline constexpr int kAlgoId = 0, kTileId = 1, kSplits = 2, kReductionScheme = 3, kStagesId = 6;

// f(name, result, parameters) for each function.
// clang-format off
#define QLORA_CUBLASLT(f) \
  f(cublasLtCreate, Status, (Handle*)) \
  f(cublasLtGetVersion, size_t, ()) \
  f(cublasLtGetStatusString, const char*, (Status)) \
  f(cublasLtMatmul, Status, \
    (Handle, Product, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, \
     const void* c, Layout, void* d, Layout, const Algo*, void* workspace, size_t bytes, void* stream)) \
  f(cublasLtMatmulAlgoCheck, Status, (Handle, Product, Layout, Layout, Layout, Layout, const Algo*, Proposal*)) \
  f(cublasLtMatmulAlgoGetHeuristic, Status, \
    (Handle, Product, Layout, Layout, Layout, Layout, Preference, int wanted, Proposal*, int* found)) \
  f(cublasLtMatmulAlgoConfigGetAttribute, Status, (const Algo*, int name, void*, size_t bytes, size_t* written)) \
  f(cublasLtMatmulDescCreate, Status, (Product*, int compute, int scale)) \
  f(cublasLtMatmulDescDestroy, Status, (Product)) \
  f(cublasLtMatmulDescSetAttribute, Status, (Product, int name, const void*, size_t bytes)) \
  f(cublasLtMatrixLayoutCreate, Status, (Layout*, int type, uint64_t rows, uint64_t cols, int64_t stride)) \
  f(cublasLtMatrixLayoutDestroy, Status, (Layout)) \
  f(cublasLtMatmulPreferenceCreate, Status, (Preference*)) \
  f(cublasLtMatmulPreferenceDestroy, Status, (Preference)) \
  f(cublasLtMatmulPreferenceSetAttribute, Status, (Preference, int name, const void*, size_t bytes))
// clang-format on

#define QLORA_POINTER(name, result, parameters) result(*name) parameters = nullptr;
struct Functions {
  QLORA_CUBLASLT(QLORA_POINTER)
};
#undef QLORA_POINTER

}  // namespace qlora::cuda::lt
