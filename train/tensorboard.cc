#include "train/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <filesystem>

#include "memory/file.h"

namespace qlora {
namespace {

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0x82f63b78u : 0);
    table[i] = c;
  }
  return table;
}

// Protocol buffers' wire format: a key (field * 8 + wire type), then the value.
enum Wire : uint32_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& out, uint64_t v) {
  while (v >= 0x80) {
    out.push_back(static_cast<char>(v | 0x80));
    v >>= 7;
  }
  out.push_back(static_cast<char>(v));
}
void put_key(std::string& out, uint32_t field, Wire wire) { put_varint(out, field << 3 | wire); }
template <class Int>
void put_little(std::string& out, Int v) {
  for (size_t i = 0; i < sizeof(v); ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}
void put_bytes(std::string& out, uint32_t field, std::string_view value) {
  put_key(out, field, bytes);
  put_varint(out, value.size());
  out.append(value);
}

// An Event: wall_time = 1 (double), step = 2 (int64); file_version = 3, summary = 5 and session_log = 7
// follow.
std::string event(int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string out;
  put_key(out, 1, fixed64);
  put_little(out, std::bit_cast<uint64_t>(now.count()));
  put_key(out, 2, varint);
  put_varint(out, static_cast<uint64_t>(step));
  return out;
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] != 0 ? name : "localhost";
}

AppendedFile new_events(const std::string& folder) {
  std::error_code ec;
  std::filesystem::create_directories(folder, ec);
  if (ec) fail_by_system(folder, ec);
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  for (int n = 0;; ++n)
    if (AppendedFile file(
            cat(folder, "/events.out.tfevents.", seconds.count(), ".", host_name(), ".", getpid(), ".", n),
            true);
        file.is_open())
      return file;
}

}  // namespace

uint32_t crc32c(std::string_view data) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t c = 0xffffffffu;
  for (char byte : data) c = kTable[(c ^ static_cast<uint8_t>(byte)) & 0xff] ^ (c >> 8);
  return ~c;
}

uint32_t masked_crc32c(std::string_view data) { return std::rotr(crc32c(data), 15) + 0xa282ead8u; }

TensorBoardWriter::TensorBoardWriter(const std::string& folder, std::optional<int64_t> resumed_at)
    : file_(new_events(folder)) {
  std::string first = event(0);
  put_bytes(first, 3, "brain.Event:2");
  record(first);
  if (!resumed_at) return;
  std::string start = event(*resumed_at + 1);
  put_bytes(start, 7, std::string_view("\x08\x01", 2));  // SessionLog: status = 1 is START
  record(start);
}

void TensorBoardWriter::scalar(std::string_view tag, int64_t step, double value) {
  std::string point;  // Summary.Value: tag = 1, simple_value = 2 (float)
  put_bytes(point, 1, tag);
  put_key(point, 2, fixed32);
  put_little(point, std::bit_cast<uint32_t>(static_cast<float>(value)));
  std::string summary;  // Summary: value = 1, repeated
  put_bytes(summary, 1, point);
  std::string message = event(step);
  put_bytes(message, 5, summary);
  record(message);
}

void TensorBoardWriter::record(std::string_view message) {
  std::string out;
  put_little(out, static_cast<uint64_t>(message.size()));
  put_little(out, masked_crc32c(out));
  out.append(message);
  put_little(out, masked_crc32c(message));
  file_.write(out);
}

}  // namespace qlora
