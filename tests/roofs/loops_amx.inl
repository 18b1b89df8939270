// The loop of products on tiles (kernels/common/tiles_amx.inl).

// kFarRows rows of kFarSteps steps by a panel of as many, as products multiply a panel: the sums go to `out`,
// one group's over another's.
inline void loop_tiles(const char* x, const char* panel, float* out) {
  const TileRegisters registers;
  constexpr int64_t kStride = (kFarSteps | 1) * 64;  // as products have it: no power of two
  for (int64_t r = 0; r < kFarRows; r += 32) {
    const TileRows part{x + r * kStride, kStride, kFarSteps};
    multiply<Rows::once>(&part, 1, panel, 32, 32, out, 32, true);
  }
}
inline constexpr double kLoopTilesFlops = 2. * kFarRows * 32 * kFarSteps * kStepTerms;

// The same loop over kNearSteps steps again and again, `times` times: 32 rows and a panel that the nearest
// cache holds together.
inline void loop_near_tiles(const char* x, const char* panel, int64_t times, float* out) {
  const TileRegisters registers;
  constexpr int64_t kStride = (kNearSteps | 1) * 64;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t t = 0; t < times; ++t)
    for (int64_t s = 0; s < kNearSteps; ++s) {
      _tile_loadd(6, panel + s * kStepBytes, 64);
      _tile_loadd(4, x + s * 64, kStride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, panel + s * kStepBytes + 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x + 16 * kStride + s * 64, kStride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  _tile_stored(0, out, 64);
}

// Products of four tiles that are loaded once: `steps` steps of the loop.
inline void loop_tile_registers(const char* values, int64_t steps, float* out) {
  const TileRegisters registers;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values + 1024, 64);
  _tile_loadd(6, values + 2048, 64);
  _tile_loadd(7, values + 3072, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
}
inline constexpr double kLoopTileFlops = 4. * 2 * kTileSide * kTileSide * kStepTerms;  // of a step
