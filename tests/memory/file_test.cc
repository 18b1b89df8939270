#include "memory/file.h"
#include "tests/support/temp_folder.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace qlora {
namespace {

class File : public ::testing::Test {
 protected:
  std::string in(const std::string& name) const { return folder_ / name; }
  static void put(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  static std::string get(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }
  size_t files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_.path()), {}));
  }
  template <class F>
  static Category category_of(F&& f) {
    try {
      f();
    } catch (const Error& e) {
      return e.category();
    }
    ADD_FAILURE() << "nothing was refused";
    return Category::internal;
  }
  const test::TempFolder folder_;
};

TEST_F(File, MapsWhatIsThere) {
  put(in("a"), "some bytes");
  MappedFile a(in("a"));
  EXPECT_EQ(a.text(), "some bytes");
  MappedFile b = std::move(a);
  EXPECT_EQ(b.text(), "some bytes");
  put(in("b"), std::string(20000, 'x'));
  b = MappedFile(in("b"));
  b.forget(0, b.size());
  b.forget(5000, 100);
  b.forget(b.size(), SIZE_MAX);
  EXPECT_EQ(b.text(), std::string(20000, 'x'));  // forgotten pages come back
  put(in("empty"), "");
  EXPECT_EQ(MappedFile(in("empty")).text(), "");
}

TEST_F(File, RefusesWhatIsNoFile) {
  EXPECT_EQ(category_of([&] { MappedFile f(in("absent")); }), Category::input);
  EXPECT_EQ(category_of([&] { MappedFile f(folder_.path()); }), Category::input);
  ASSERT_EQ(mkfifo(in("fifo").c_str(), 0600), 0);
  EXPECT_EQ(category_of([&] { MappedFile f(in("fifo")); }),
            Category::input);  // and does not wait for a writer
  EXPECT_EQ(category_of([&] { read_file(in("fifo"), 10); }), Category::input);
}

TEST_F(File, ShrinkingWhileMappedEndsWithExitFive) {
  put(in("a"), std::string(100000, 'x'));
  EXPECT_EXIT(
      {
        const MappedFile f(in("a"));
        std::filesystem::resize_file(in("a"), 10);
        volatile char sum = 0;
        for (const char c : f.text()) sum = static_cast<char>(sum + c);
      },
      ::testing::ExitedWithCode(5), "a: the file shrank");
}

TEST_F(File, WritesToTheSideUntilCommit) {
  put(in("a"), "former");
  {
    FileWriter w(in("a"));
    w.write("0123456789");
    EXPECT_EQ(get(in("a")), "former");
  }
  EXPECT_EQ(get(in("a")), "former");
  EXPECT_EQ(files(), 1u);  // what was given up leaves nothing behind
  FileWriter w(in("a"));
  w.write("0123456789");
  w.write(std::string(size_t{3} << 20, 'y'));
  w.write("end");
  w.write_at(2, "AB", 2);
  EXPECT_EQ(w.written(), (size_t{3} << 20) + 13);
  w.commit();
  EXPECT_EQ(get(in("a")), "01AB456789" + std::string(size_t{3} << 20, 'y') + "end");
  EXPECT_EQ(files(), 1u);
}

TEST_F(File, WritesOverFilesAlone) {
  ASSERT_EQ(mkfifo(in("fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink(in("fifo"), in("link"));
  std::filesystem::create_directory(in("folder"));
  for (const char* name : {"fifo", "link", "folder"})
    EXPECT_EQ(category_of([&] { FileWriter w(in(name)); }), Category::io) << name;
  EXPECT_TRUE(std::filesystem::is_fifo(in("link")));
  EXPECT_EQ(files(), 3u);
}

TEST_F(File, ADiskWithoutRoomLeavesTheFormerFile) {
  put(in("a"), "former");
  EXPECT_EXIT(
      {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit limit = {};
        limit.rlim_cur = limit.rlim_max = 5000;
        setrlimit(RLIMIT_FSIZE, &limit);
        try {
          FileWriter w(in("a"));
          w.write(std::string(100000, 'x'));
          w.commit();
        } catch (const Error& e) {
          std::exit(e.exit_code());
        }
        std::exit(0);
      },
      ::testing::ExitedWithCode(5), "");
  EXPECT_EQ(get(in("a")), "former");
  EXPECT_EQ(category_of([&] { FileWriter w(in("absent/a")); }), Category::io);
  EXPECT_EQ(category_of([&] { sync_folder(in("absent")); }), Category::io);
}

TEST_F(File, ReadsWithinALimit) {
  write_file(in("a"), "twelve bytes");
  EXPECT_EQ(read_file(in("a"), 12), "twelve bytes");
  EXPECT_EQ(category_of([&] { read_file(in("a"), 11); }), Category::input);
}

}  // namespace
}  // namespace qlora
