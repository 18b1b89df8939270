#include "memory/page_toucher.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "memory/error.h"
#include "memory/exec.h"

using namespace qlora;

namespace {

constexpr std::chrono::milliseconds kLong{60000};

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

class PageToucherHow : public testing::TestWithParam<PageToucher::How> {};

TEST_P(PageToucherHow, EveryPageIsResident) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const size_t bytes : {size_t{1}, page, (size_t{8} << 20) + 1, size_t{50} << 20}) {
    const Mapping m((bytes + page - 1) / page * page);
    madvise(m.data, m.bytes, MADV_NOHUGEPAGE);  // a huge page would bring its neighbours along
    ASSERT_EQ(resident_pages(m.data, m.bytes), 0u);
    PageToucher toucher(m.data, bytes, 3, GetParam());
    ASSERT_TRUE(toucher.wait(kLong));
    EXPECT_EQ(resident_pages(m.data, m.bytes), m.bytes / page) << bytes;
  }
}

TEST_P(PageToucherHow, LeavesWhatIsWrittenMeanwhile) {
  const Mapping m(size_t{64} << 20);
  const size_t words = m.bytes / sizeof(uint64_t);
  auto* data = reinterpret_cast<uint64_t*>(m.data);
  PageToucher toucher(m.data, m.bytes, 2, GetParam());
  for (size_t i = 0; i < words; ++i) data[i] = ~i;
  ASSERT_TRUE(toucher.wait(kLong));
  size_t wrong = 0;
  for (size_t i = 0; i < words; ++i) wrong += data[i] != ~i;
  EXPECT_EQ(wrong, 0u);
}

INSTANTIATE_TEST_SUITE_P(, PageToucherHow,
                         testing::Values(PageToucher::How::populate, PageToucher::How::write),
                         [](const auto& how) {
                           return how.param == PageToucher::How::populate ? "populate" : "write";
                         });

TEST(PageToucher, MemoryThatIsNotThereIsAnError) {
  Mapping m(size_t{32} << 20);
  munmap(m.data + m.bytes / 2, m.bytes / 2);
  m.bytes /= 2;
  PageToucher toucher(m.data, 2 * m.bytes, 2);
  try {
    toucher.wait(kLong);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::memory);
  }
}

TEST(PageToucher, MayBeLeftUnfinished) {
  const Mapping m(size_t{64} << 20);
  PageToucher(m.data, m.bytes, 2);  // its end waits for no more than the pieces in hand
  EXPECT_EQ(m.data[m.bytes - 1], std::byte{0});
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
