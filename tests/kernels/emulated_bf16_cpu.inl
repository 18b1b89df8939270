// What emulated_bf16_amx.inl calls.
#include "kernels/attention/attention_cpu.inl"
#include "kernels/gemm/gemm_cpu.inl"
