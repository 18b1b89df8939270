#pragma once
// The intrinsics of x86-64, without the warnings that GCC 12 has of its own headers' undefined vectors (GCC
// bug 105593).
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
