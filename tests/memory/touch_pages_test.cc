#include "memory/touch_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "memory/error.h"
#include "memory/exec.h"

using namespace qlora;

namespace {

// Anonymous memory, unmapped when it dies.
struct Mapping {
  explicit Mapping(size_t n) : bytes(n) {
    void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(p, MAP_FAILED);
    data = static_cast<std::byte*>(p);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { munmap(data, bytes); }
  std::byte* data;
  size_t bytes;
};

size_t resident_pages(std::byte* data, size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> in((bytes + page - 1) / page);
  EXPECT_EQ(mincore(data, bytes, in.data()), 0);
  size_t n = 0;
  for (const unsigned char c : in) n += c & 1;
  return n;
}

class TouchPagesHow : public testing::TestWithParam<Touch> {};

TEST_P(TouchPagesHow, EveryPageIsResident) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const size_t bytes : {size_t{1}, page, (size_t{8} << 20) + 1, size_t{50} << 20}) {
    const Mapping m((bytes + page - 1) / page * page);
    madvise(m.data, m.bytes, MADV_NOHUGEPAGE);  // a huge page would bring its neighbours along
    ASSERT_EQ(resident_pages(m.data, m.bytes), 0u);
    touch_pages(m.data, bytes, 3, GetParam());
    EXPECT_EQ(resident_pages(m.data, m.bytes), m.bytes / page) << bytes;
  }
}

TEST_P(TouchPagesHow, LeavesWhatStandsThere) {
  const Mapping m(size_t{20} << 20);
  std::memset(m.data, 0x5a, m.bytes);
  touch_pages(m.data, m.bytes, 2, GetParam());
  for (size_t i = 0; i < m.bytes; i += 512) ASSERT_EQ(m.data[i], std::byte{0x5a}) << i;
}

INSTANTIATE_TEST_SUITE_P(, TouchPagesHow, testing::Values(Touch::populate, Touch::write),
                         [](const auto& how) { return how.param == Touch::populate ? "populate" : "write"; });

TEST(TouchPages, MemoryThatIsNotThereIsAnError) {
  Mapping m(size_t{32} << 20);
  munmap(m.data + m.bytes / 2, m.bytes / 2);
  m.bytes /= 2;
  try {
    touch_pages(m.data, 2 * m.bytes, 2);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::memory);
  }
}

TEST(Arena, IsTouchedToItsEndAndZero) {
  Arena arena((size_t{20} << 20) + 100);
  arena.touch();
  Arena moved = std::move(arena);
  EXPECT_EQ(arena.data(), nullptr);
  size_t sum = 0;
  for (size_t i = 0; i < moved.bytes(); ++i) sum += static_cast<size_t>(moved.data()[i]);
  EXPECT_EQ(sum, 0u);
  Arena().touch();
}

}  // namespace
