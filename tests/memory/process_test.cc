#include "memory/process.h"

#include <gtest/gtest.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace qlora {
namespace {

TEST(Process, PeakFollowsWhatIsTouched) {
  const size_t before = peak_resident_bytes();
  ASSERT_GT(before, size_t{1} << 20);
  constexpr size_t kBytes = size_t{256} << 20;
  {
    std::vector<char> block(kBytes);
    std::memset(block.data(), 1, block.size());
    EXPECT_GE(resident_set().anonymous, kBytes);
  }
  EXPECT_GE(peak_resident_bytes(), kBytes);
  EXPECT_LT(peak_resident_bytes(), before + 2 * kBytes);
}

// Touches every page of the program and its libraries that can be read, gaps between variables too.
__attribute__((no_sanitize("address"))) int touch_code(dl_phdr_info* info, size_t, void*) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_R) == 0) continue;
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    for (uintptr_t at = begin / page * page; at < begin + segment.p_memsz; at += page)
      static_cast<void>(*reinterpret_cast<const volatile char*>(std::max(at, begin)));
  }
  return 0;
}

TEST(Process, CodeToComeIsWhatWasNotTouched) {
  const size_t before = code_to_come(), resident = resident_set().file + resident_set().anonymous;
  EXPECT_GT(before, size_t{64} << 10) << "a program that has run all of its code";
  dl_iterate_phdr(touch_code, nullptr);
  EXPECT_LE(code_to_come(), size_t{64} << 10);  // what cannot be read
#ifndef __SANITIZE_ADDRESS__  // its own variables are megabytes of zeros, which reading does not make
                              // resident
  // The kernel's sums lag by some pages a thread.
  const size_t after = resident_set().file + resident_set().anonymous;
  EXPECT_NEAR(static_cast<double>(after - resident), static_cast<double>(before), 1 << 20);
#else
  static_cast<void>(resident);
#endif
}

TEST(Process, SomethingIsFree) {
  EXPECT_GT(available_bytes(), size_t{1} << 20);
  EXPECT_LT(available_bytes(), size_t{1} << 50);
}

}  // namespace
}  // namespace qlora
