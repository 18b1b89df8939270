// A namespace's bodies under test, over the instructions that were included before.
#include "kernels/attention/attention_amx.inl"
#include "kernels/gemm/gemm_amx.inl"
