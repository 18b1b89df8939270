#pragma once
#include <cstddef>

namespace qlora {

enum class Touch { populate, write };  // write: what kernels before 5.14 are left with, and for tests

// Makes writable anonymous memory that nobody uses yet resident, on `threads` threads; what stands there
// stays. Category::memory when the system has no pages left.
void touch_pages(std::byte* begin, size_t bytes, int threads, Touch how = Touch::populate);

}  // namespace qlora
