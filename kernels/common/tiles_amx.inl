// Products on AMX tiles (Intel SDM, TDPBF16PS). Of a step's 32 terms the even and the odd ones are two chains
// of multiply-adds from 0, whose sum is added to what stands in the tile; subnormals count as 0.

// While it lives, this thread's tile registers are all 16 rows of 64 bytes.
class TileRegisters {
 public:
  TileRegisters() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // the intrinsic says that it reads eight bytes of it
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// c[kRows * 16, kCols * 16] (+)= x w. `step` is the panel's first of the pair of tiles' columns.
template <Rows kUse, int kRows, int kCols>
inline void tiles(const TileRows* x, int64_t parts, const char* step, float* c, int64_t stride_c,
                  bool first) {
  char* at = reinterpret_cast<char*>(c);
  const int64_t stride = stride_c * 4;
  asm volatile("" ::: "memory");  // the intrinsics do not say that they read
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, at, stride);
    if constexpr (kCols > 1) _tile_loadd(1, at + 64, stride);
    if constexpr (kRows > 1) _tile_loadd(2, at + 16 * stride, stride);
    if constexpr (kRows > 1 && kCols > 1) _tile_loadd(3, at + 16 * stride + 64, stride);
  }
  for (int64_t p = 0; p < parts; ++p) {
    const char *a = x[p].data, *b = a + 16 * x[p].stride;
    for (int64_t s = 0; s < x[p].steps; ++s, a += 64, b += 64, step += kStepBytes) {
      _tile_loadd(6, step, 64);
      if constexpr (kUse == Rows::once)
        _tile_stream_loadd(4, a, x[p].stride);
      else
        _tile_loadd(4, a, x[p].stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kCols > 1) {
        _tile_loadd(7, step + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kRows > 1) {
        if constexpr (kUse == Rows::once)
          _tile_stream_loadd(5, b, x[p].stride);
        else
          _tile_loadd(5, b, x[p].stride);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kCols > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, at, stride);
  if constexpr (kCols > 1) _tile_stored(1, at + 64, stride);
  if constexpr (kRows > 1) _tile_stored(2, at + 16 * stride, stride);
  if constexpr (kRows > 1 && kCols > 1) _tile_stored(3, at + 16 * stride + 64, stride);
  asm volatile("" ::: "memory");
}

template <Rows kUse = Rows::again>
inline void multiply(const TileRows* x, int64_t parts, const char* step, int64_t rows, int64_t cols, float* c,
                     int64_t stride_c, bool first) {
  if (rows > kTileSide)
    cols > kTileSide ? tiles<kUse, 2, 2>(x, parts, step, c, stride_c, first)
                     : tiles<kUse, 2, 1>(x, parts, step, c, stride_c, first);
  else
    cols > kTileSide ? tiles<kUse, 1, 2>(x, parts, step, c, stride_c, first)
                     : tiles<kUse, 1, 1>(x, parts, step, c, stride_c, first);
}
