#pragma once
#include <memory>
#include <string>

#include "memory/page_files.h"

namespace qlora {

// Pages in files by io_uring where the system allows it, else by a thread; how() says which and why.
// `channels` is the pager's number of slots.
std::unique_ptr<PageBackend> file_pages(PageFiles files, int channels);

// Its two ways. io_uring: null where the kernel lacks it or a container forbids it, with the reason.
std::unique_ptr<PageBackend> uring_pages(PageFiles& files, int channels, std::string& why_not);
// One thread with pread and pwrite, first come, first served.
std::unique_ptr<PageBackend> thread_pages(PageFiles files, int channels, const std::string& why = "");

// Pages in a temporary file in `folder` that is mapped: copies to and from the page cache, which writes and
// reads ahead on its own time.
std::unique_ptr<PageBackend> mapped_pages(const std::string& folder, uint32_t pages, size_t page_bytes,
                                          int channels);

// Bytes a second that the backend reads, over `pages` pages of `bytes` from page 0 on: measured before the
// first step.
double measured_bandwidth(PageBackend& backend, uint32_t pages, size_t bytes);

}  // namespace qlora
