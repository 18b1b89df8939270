// A namespace's bodies under test, over the instructions that were included before.
#include "kernels/attention/attention_bf16.inl"
#include "kernels/gemm/gemm_bf16.inl"
