#include "model/row_tile.h"

#include <charconv>
#include <cstdlib>

#include "memory/cuda/start.h"
#include "memory/error.h"

namespace qlora {

int64_t row_tile_of(const std::string& rows) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(rows.data(), rows.data() + rows.size(), n);
  if (error != std::errc() || end != rows.data() + rows.size() || n < kRowTile || n > 65536 ||
      n % kRowTile != 0)
    fail(Category::usage, "QLORA_ROW_TILE=", rows, ": a multiple of 512 up to 65536, or unset it");
  return n;
}

int64_t row_tile(const Device& device) {
  if (device.kind != DeviceKind::cuda) return kRowTile;
  const char* const rows = std::getenv("QLORA_ROW_TILE");
  if (rows != nullptr && *rows != 0) return row_tile_of(rows);
  const int major = cuda::find(device.index).major;
  return major == 9 || major == 10 ? kWideRowTile : kRowTile;
}

}  // namespace qlora
