#include "memory/page_files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "memory/page_backends.h"
#include "tests/memory/pager_schedule.h"
#include "tests/support/temp_folder.h"

namespace qlora::testing {
namespace {

class PageFilesTest : public ::testing::Test {
 protected:
  std::string in(const std::string& name) const { return folder_ / name; }
  const test::TempFolder folder_;
};

using Open = std::unique_ptr<PageBackend> (*)(PageFiles files, int channels);
std::unique_ptr<PageBackend> by_thread(PageFiles files, int channels) {
  return thread_pages(std::move(files), channels);
}
constexpr Open kWays[] = {file_pages, by_thread};

Error error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was refused";
  return {Category::internal, ""};
}

// Every way to a file gives the bytes that a model gives, in folders with and without O_DIRECT.
TEST_F(PageFilesTest, RandomSchedulesAgreeWithAModel) {
  std::vector<std::string> folders = {folder_.path()};
  if (access("/dev/shm", W_OK) == 0) folders.push_back("/dev/shm");
  for (const std::string& folder : folders)
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      SCOPED_TRACE(cat(folder, " ", seed));
      const PagerSchedule s(seed, 5000 + seed * 3000, Pager::Life::lasting);
      for (const Open open : kWays)
        PagerRun(s, [&](const PagerSchedule& p) {
          return open(PageFiles::temporary(folder, p.pages, p.page_bytes), p.slots);
        }).passes(2);
      PagerRun(s, [&](const PagerSchedule& p) {
        return mapped_pages(folder, p.pages, p.page_bytes, p.slots);
      }).passes(2);
      if (HasFailure()) return;
    }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path())) << "no name leads to a pager's file";
}

// Pages of several requests each.
TEST_F(PageFilesTest, LargePages) {
  const PagerSchedule s(4, PageFiles::kRequestBytes * 2 + 12345, Pager::Life::lasting);
  for (const Open open : kWays)
    PagerRun(s, [&](const PagerSchedule& p) {
      return open(PageFiles::temporary(folder_.path(), p.pages, p.page_bytes), p.slots);
    }).passes(1);
}

struct Memory {
  explicit Memory(size_t bytes) : data(static_cast<std::byte*>(std::aligned_alloc(4096, bytes))) {}
  ~Memory() { std::free(data); }
  std::byte* data;
};

// A page of two extents of a file that somebody else wrote, the second one up to its ragged end.
struct Source {
  explicit Source(const std::string& path) : path(path) {
    for (int i = 0; i < 20123; ++i) text.push_back(static_cast<char>(i * 31 >> 3));
    std::ofstream(path, std::ios::binary) << text;
    id = MappedFile(path).id();
  }
  PageFiles open() const {
    PageFiles files;
    files.files.push_back(PageFile::source(path, id));
    files.pages.push_back({{0, 4096, 5000, 0}, {0, 16384, 20123 - 16384, 8192}});
    return files;
  }
  std::string path, text;
  FileId id;
};

TEST_F(PageFilesTest, PagesMayBePiecesOfAFile) {
  const Source source(in("model"));
  for (const Open open : kWays) {
    const auto backend = open(source.open(), 1);
    const Memory m(16384);
    backend->start(0, {false, 0, m.data, 8192 + 20123 - 16384});
    backend->wait(0);
    EXPECT_EQ(std::memcmp(m.data, source.text.data() + 4096, 5000), 0);
    EXPECT_EQ(std::memcmp(m.data + 8192, source.text.data() + 16384, 20123 - 16384), 0);
  }
}

TEST_F(PageFilesTest, AFileThatShrinksIsAnError) {
  for (const Open open : kWays) {
    const Source source(in("model"));
    const auto backend = open(source.open(), 2);
    std::filesystem::resize_file(source.path, 18000);
    const Memory m(16384);
    backend->start(1, {false, 0, m.data, 8192 + 20123 - 16384});
    const Error e = error_of([&] { backend->wait(1); });
    EXPECT_EQ(e.category(), Category::io);
    EXPECT_NE(std::string(e.what()).find("model: ends before byte 16384"), std::string::npos) << e.what();
    backend->start(1, {false, 0, m.data, 5000});  // reported once; what is still there can be read
    backend->wait(1);
    EXPECT_EQ(std::memcmp(m.data, source.text.data() + 4096, 5000), 0);
  }
}

TEST_F(PageFilesTest, AnotherFileUnderTheSameNameIsRefused) {
  const Source source(in("model"));
  std::filesystem::rename(in("model"), in("former"));
  const Source other(in("model"));
  EXPECT_EQ(error_of([&] { source.open(); }).category(), Category::io);
  std::filesystem::remove(in("model"));
  EXPECT_EQ(error_of([&] { source.open(); }).category(), Category::io);
}

TEST_F(PageFilesTest, ADiskWithoutRoomIsAnErrorBeforeTheFirstStep) {
  EXPECT_EXIT(
      {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit limit = {};
        limit.rlim_cur = limit.rlim_max = 5000;
        setrlimit(RLIMIT_FSIZE, &limit);
        try {
          PageFiles::temporary(folder_.path(), 100, 10000);
        } catch (const Error& e) {
          std::fputs(e.what(), stderr);
          std::exit(e.exit_code());
        }
        std::exit(0);
      },
      ::testing::ExitedWithCode(5), "no room for 2 MiB of pages on its disk");
  EXPECT_EQ(error_of([&] { PageFiles::temporary(in("absent"), 1, 1); }).category(), Category::io);
}

// The disk fails while a page is on its way out: the file is not open for writing.
TEST_F(PageFilesTest, AFailedWriteIsAnError) {
  const Source source(in("model"));
  for (const Open open : kWays) {
    const auto backend = open(source.open(), 1);
    const Memory m(16384);
    std::memset(m.data, 0, 16384);
    backend->start(0, {true, 0, m.data, 5000});
    const Error e = error_of([&] { backend->wait(0); });
    EXPECT_EQ(e.category(), Category::io);
    EXPECT_NE(std::string(e.what()).find("byte 4096: a page cannot be written"), std::string::npos)
        << e.what();
    EXPECT_TRUE(backend->ready(0));
  }
}

// A transfer under way may be given up: its memory is free afterwards.
TEST_F(PageFilesTest, TransfersCanBeGivenUp) {
  for (const Open open : kWays) {
    const size_t bytes = PageFiles::kRequestBytes * 2;
    const auto backend = open(PageFiles::temporary(folder_.path(), 2, bytes), 2);
    const Memory a(bytes), b(bytes);
    std::memset(b.data, 1, bytes);
    backend->start(0, {false, 0, a.data, bytes});
    backend->start(1, {true, 1, b.data, bytes});
    backend->abandon();
    EXPECT_TRUE(backend->ready(0));
    EXPECT_TRUE(backend->ready(1));
  }
}

TEST_F(PageFilesTest, SaysHowPagesTravel) {
  EXPECT_NE(thread_pages(PageFiles::temporary(folder_.path(), 1, 1), 1, "no io_uring here: forbidden")
                ->how()
                .find("forbidden"),
            std::string::npos);
  const auto backend = file_pages(PageFiles::temporary(folder_.path(), 4, 1 << 20), 1);
  EXPECT_FALSE(backend->how().empty());
  EXPECT_GT(measured_bandwidth(*backend, 4, 1 << 20), 0);
}

}  // namespace
}  // namespace qlora::testing
