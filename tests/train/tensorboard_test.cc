#include "train/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "memory/error.h"
#include "tests/support/temp_folder.h"

namespace qlora {
namespace {

// RFC 3720, B.4, and the check value of the CRC catalogue.
TEST(TensorBoard, Crc32c) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(""), 0u);
  // TensorFlow's crc32c_test: the mask of a mask differs from the CRC.
  EXPECT_EQ(masked_crc32c("123456789"), ((0xe3069283u >> 15 | 0xe3069283u << 17) + 0xa282ead8u));
}

// What a message's fields hold, one level deep: varints and fixed numbers as bits, the rest as bytes.
struct Field {
  uint32_t number;
  uint64_t bits;
  std::string bytes;
};

uint64_t take_varint(std::string_view& in) {
  uint64_t v = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<uint8_t>(in.at(0));
    in.remove_prefix(1);
    v |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return v;
  }
}

std::vector<Field> fields(std::string_view in) {
  std::vector<Field> out;
  while (!in.empty()) {
    const uint64_t key = take_varint(in);
    Field f{static_cast<uint32_t>(key >> 3), 0, {}};
    const size_t fixed = (key & 7) == 1 ? 8 : (key & 7) == 5 ? 4 : 0;
    if ((key & 7) == 0) f.bits = take_varint(in);
    std::memcpy(&f.bits, in.data(), fixed);
    in.remove_prefix(fixed);
    if ((key & 7) == 2) {
      const size_t n = take_varint(in);
      f.bytes = in.substr(0, n);
      in.remove_prefix(n);
    }
    out.push_back(f);
  }
  return out;
}

std::vector<std::string> records(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  const std::string all = text.str();
  std::vector<std::string> out;
  for (size_t at = 0; at < all.size();) {
    uint64_t length;
    uint32_t crc;
    std::memcpy(&length, &all.at(at), 8);
    std::memcpy(&crc, &all.at(at + 8), 4);
    EXPECT_EQ(crc, masked_crc32c(std::string_view(all).substr(at, 8)));
    out.push_back(all.substr(at + 12, length));
    std::memcpy(&crc, &all.at(at + 12 + length), 4);
    EXPECT_EQ(crc, masked_crc32c(out.back()));
    at += 16 + length;
  }
  return out;
}

TEST(TensorBoard, EventsReadBack) {
  const test::TempFolder scratch;
  const std::string folder = scratch / "runs";
  std::string first, second;
  {
    TensorBoardWriter w(folder, std::nullopt);
    w.scalar("train/loss", 300, 1.25);
    w.scalar("eval/loss", 301, -0.5);
    first = w.path();
    TensorBoardWriter resumed(folder, 300);
    second = resumed.path();
  }
  EXPECT_NE(first, second);
  EXPECT_EQ(std::filesystem::path(first).filename().string().rfind("events.out.tfevents.", 0), 0u);
  const auto events = records(first);
  ASSERT_EQ(events.size(), 3u);
  auto f = fields(events[0]);
  ASSERT_EQ(f.size(), 3u);
  EXPECT_EQ(f[2].number, 3u);
  EXPECT_EQ(f[2].bytes, "brain.Event:2");
  f = fields(events[1]);
  ASSERT_EQ(f.size(), 3u);
  double wall;
  std::memcpy(&wall, &f[0].bits, 8);
  EXPECT_GT(wall, 1.7e9);
  EXPECT_EQ(f[1].number, 2u);
  EXPECT_EQ(f[1].bits, 300u);
  EXPECT_EQ(f[2].number, 5u);
  const auto value = fields(fields(f[2].bytes)[0].bytes);
  EXPECT_EQ(value[0].bytes, "train/loss");
  float number;
  std::memcpy(&number, &value[1].bits, 4);
  EXPECT_EQ(value[1].number, 2u);
  EXPECT_EQ(number, 1.25f);
  // The resumed session says START at the step after: field 7, status 1.
  const auto start = fields(records(second)[1]);
  EXPECT_EQ(start[1].bits, 301u);
  EXPECT_EQ(start[2].number, 7u);
  EXPECT_EQ(fields(start[2].bytes)[0].bits, 1u);
}

TEST(TensorBoard, FailsAsIo) {
  try {
    TensorBoardWriter w("/proc/no/runs", std::nullopt);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::io);
  }
}

}  // namespace
}  // namespace qlora
