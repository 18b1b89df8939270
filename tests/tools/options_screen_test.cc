#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <limits>

#include "tools/common/format.h"
#include "tools/common/screen.h"

namespace qlora::tools {
namespace {

Progress sample() {
  return {.done = 12,
          .total = 100,
          .loss = 1.2341,
          .norm = 0.414,
          .tokens_per_second = 1830.4,
          .seconds_left = 83,
          .bytes = 7730941133};
}

size_t cells(const std::string& text) {
  size_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return count;
}

TEST(Format, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes((uint64_t{1} << 30) - 1), "1.0 GiB");  // never 1024.0 MiB
  EXPECT_EQ(format_bytes(7730941133), "7.2 GiB");
  EXPECT_EQ(format_bytes(~uint64_t{0}), "16.0 EiB");
}

TEST(Format, Counts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1830), "1,830");
  EXPECT_EQ(format_count(-123456), "-123,456");
  EXPECT_EQ(format_count(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

TEST(Format, Durations) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(83), "1:23");
  EXPECT_EQ(format_duration(7384), "2:03:04");
  EXPECT_EQ(format_duration(3 * 86400 + 14706), "3d 04:05:06");
  for (double odd :
       {-1.0, 1e300, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()})
    EXPECT_EQ(format_duration(odd), "?");
}

TEST(Format, Values) {
  EXPECT_EQ(format_value(1.2341), "1.234");
  EXPECT_EQ(format_value(0.085612), "0.08561");
  EXPECT_EQ(format_value(123456.7), "123457");
  EXPECT_EQ(format_value(0), "0");
  EXPECT_EQ(format_value(1.5e-7), "1.500e-07");
  EXPECT_EQ(format_value(std::numeric_limits<double>::quiet_NaN()), "nan");
  EXPECT_EQ(format_value(-std::numeric_limits<double>::infinity()), "-inf");
}

TEST(Bar, PlainLine) {
  EXPECT_EQ(progress_line(sample()),
            "step 12/100 | loss 1.234 | norm 0.41 | 1,830 tok/s | 7.2 GiB | 1:23 left");
  EXPECT_EQ(progress_line({.what = "row", .done = 1234}), "row 1,234");
}

TEST(Bar, FitsAnyWidth) {
  for (const bool blocks : {false, true}) {
    for (int columns = 0; columns <= 200; ++columns)
      EXPECT_LE(cells(progress_bar(sample(), columns, blocks)), static_cast<size_t>(columns));
    const std::string at80 = progress_bar(sample(), 79, blocks);
    for (const char* part : {"step 12/100", "loss 1.234", "1,830 tok/s", "1:23 left"})
      EXPECT_NE(at80.find(part), std::string::npos) << at80;
    EXPECT_EQ(at80.find(blocks ? "░░░░░░ step" : "[#---------------] step"), 0u) << at80;
  }
  EXPECT_EQ(progress_bar(sample(), 120, false),
            "[##----------------------] step 12/100 | loss 1.234 | norm 0.41 | 1,830 tok/s | 7.2 GiB | "
            "1:23 left");
  EXPECT_EQ(progress_bar(sample(), 30, false), "step 12/100 | 1:23 left");
  EXPECT_EQ(progress_bar(sample(), 4, false), "step");
  EXPECT_EQ(progress_bar({.done = 7, .total = 5}, 80, false), "[########################] step 7/5");
}

// A terminal of our own: what is written to the slave is read back from the master.
class Terminal {
 public:
  explicit Terminal(unsigned short columns) : master_(posix_openpt(O_RDWR | O_NOCTTY)) {
    if (master_ < 0 || grantpt(master_) != 0 || unlockpt(master_) != 0) return;
    slave_ = open(ptsname(master_), O_RDWR | O_NOCTTY);
    resize(columns);
    fcntl(master_, F_SETFL, O_NONBLOCK);
  }
  ~Terminal() {
    if (slave_ >= 0) close(slave_);
    if (master_ >= 0) close(master_);
  }
  void resize(unsigned short columns) const {
    winsize size{24, columns, 0, 0};
    ioctl(slave_, TIOCSWINSZ, &size);
  }
  std::string read_all() const {
    std::string text;
    char part[4096];
    for (ssize_t n; (n = read(master_, part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(n));
    return text;
  }
  int fd() const { return slave_; }

 private:
  int master_, slave_ = -1;
};

class ScreenTest : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C", 1);
  }
};

TEST_F(ScreenTest, TerminalDrawsInPlaceAndKeepsTheLastLine) {
  const Terminal terminal(80);
  if (terminal.fd() < 0) GTEST_SKIP() << "this machine gives out no terminals";
  Screen screen(ScreenSettings{.fd = terminal.fd()});
  EXPECT_TRUE(screen.terminal());
  screen.progress(sample());
  EXPECT_EQ(terminal.read_all(), "\r" + progress_bar(sample(), 79, false) + "\x1b[K");
  Progress next = sample();
  for (next.done = 13; next.done <= 100; ++next.done) screen.progress(next);  // faster than ten a second
  next.done = 100;
  const std::string between = terminal.read_all();
  EXPECT_LE(std::count(between.begin(), between.end(), '\r'), 2);
  screen.line("checkpoint-100");
  EXPECT_EQ(terminal.read_all(), "\r\x1b[Kcheckpoint-100\r\n\r" + progress_bar(next, 79, false) + "\x1b[K");
  terminal.resize(40);
  next.loss = 0.5;
  screen.progress(next);
  screen.finish();
  EXPECT_EQ(terminal.read_all(), "\r" + progress_bar(next, 39, false) + "\x1b[K\r\n");
  screen.line("done");
  EXPECT_EQ(terminal.read_all(), "done\r\n");
}

TEST_F(ScreenTest, PipeGetsPlainLinesAndQuietNone) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  {
    Screen screen(ScreenSettings{.fd = ends[1]});
    screen.line("plan");
    screen.detail("not without --verbose");
    screen.progress(sample());
    screen.progress(sample());
    Screen quiet(ScreenSettings{.fd = ends[1], .quiet = true});
    quiet.line("x");
    quiet.progress(sample());
  }
  close(ends[1]);
  std::string text(4096, '\0');
  const ssize_t n = read(ends[0], text.data(), text.size());
  close(ends[0]);
  text.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
  EXPECT_EQ(text, "plan\n" + progress_line(sample()) + "\n" + progress_line(sample()) + "\n");
}

TEST_F(ScreenTest, DumbTerminalGetsPlainLines) {
  const Terminal terminal(80);
  if (terminal.fd() < 0) GTEST_SKIP() << "this machine gives out no terminals";
  setenv("TERM", "dumb", 1);
  EXPECT_FALSE(Screen(ScreenSettings{.fd = terminal.fd()}).terminal());
}

}  // namespace
}  // namespace qlora::tools
