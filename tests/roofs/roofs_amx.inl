// The products that tile registers make when nothing else is touched: four sums, as the microkernel has them.
inline void tile_chains(int64_t rounds) {
  const TileRegisters registers;
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}
inline constexpr double kTileFlops = 4. * 2 * kTileSide * kTileSide * kStepTerms;
