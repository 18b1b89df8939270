#include "kernels/common/panels_bf16.inl"
#include "kernels/common/tiles_amx.inl"
#include "tests/kernels/emulated_bf16_bodies.inl"

// c[16, 16] += a b, the words of whole tiles.
inline void one_product(void* c, const void* a, const void* b) {
  const TileRegisters registers;
  asm volatile("" ::: "memory");
  _tile_loadd(0, c, 64);
  _tile_stream_loadd(1, a, 64);
  _tile_loadd(2, b, 64);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, c, 64);
  asm volatile("" ::: "memory");
}
