#include "tools/common/screen.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tools/common/format.h"
#include "tools/common/option_value.h"

namespace qlora::tools {
namespace {

constexpr int kLongestBar = 24, kShortestBar = 6;

struct Field {
  std::string text;
  int rank;  // the highest is left out first
};

std::string format_norm(double norm) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", norm);
  return norm >= 0.01 && norm < 1e6 ? text : format_value(norm);
}

std::vector<Field> fields_of(const Progress& p) {
  std::vector<Field> fields;
  if (p.loss) fields.push_back({"loss " + format_value(*p.loss), 2});
  if (p.norm) fields.push_back({"norm " + format_norm(*p.norm), 5});
  if (p.tokens_per_second)
    fields.push_back(
        {format_count(static_cast<int64_t>(std::clamp(*p.tokens_per_second, 0.0, 1e15))) + " tok/s", 3});
  if (p.bytes) fields.push_back({format_bytes(*p.bytes), 4});
  if (p.seconds_left) fields.push_back({format_duration(*p.seconds_left) + " left", 1});
  return fields;
}

std::string count_of(const Progress& p) {
  return p.what + " " + format_count(p.done) + (p.total > 0 ? "/" + format_count(p.total) : "");
}

std::string joined(std::string line, const std::vector<Field>& fields) {
  for (const Field& field : fields) line += " | " + field.text;
  return line;
}

std::string bar_of(const Progress& p, int cells, bool blocks) {
  const double share =
      static_cast<double>(std::clamp<int64_t>(p.done, 0, p.total)) / static_cast<double>(p.total);
  const int full = static_cast<int>(share * cells);
  std::string bar;
  for (int i = 0; i < cells; ++i) bar += i < full ? (blocks ? "█" : "#") : (blocks ? "░" : "-");
  return blocks ? bar + " " : "[" + bar + "] ";
}

bool set(const char* name) {
  const char* value = std::getenv(name);
  return value && *value;
}

bool utf8_locale() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (!set(name)) continue;
    const std::string value = std::getenv(name);
    const size_t dot = value.find('.');
    const std::string_view charset =
        dot == value.npos ? std::string_view() : std::string_view(value).substr(dot + 1);
    return equal_without_case(charset, "utf-8") || equal_without_case(charset, "utf8");
  }
  return false;
}

// Asked at each drawing: the window may have another size by now.
int columns_of(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string progress_line(const Progress& progress) {
  return joined(count_of(progress), fields_of(progress));
}

std::string progress_bar(const Progress& progress, int columns, bool blocks) {
  const int frame = blocks ? 1 : 3;
  std::vector<Field> fields = fields_of(progress);
  for (;;) {
    const std::string line = joined(count_of(progress), fields);
    const int room = columns - static_cast<int>(line.size());
    const int cells = std::min(kLongestBar, room - frame);
    if (progress.total > 0 && cells >= kShortestBar) return bar_of(progress, cells, blocks) + line;
    const auto last =
        std::max_element(fields.begin(), fields.end(), [](auto& a, auto& b) { return a.rank < b.rank; });
    // The bar is worth more than norm and memory, and less than loss, speed and time.
    if (room >= 0 && (fields.empty() || progress.total == 0 || last->rank < 4)) return line;
    if (fields.empty()) return line.substr(0, static_cast<size_t>(std::max(columns, 0)));
    fields.erase(last);
  }
}

Screen::Screen(const ScreenSettings& settings) : settings_(settings), blocks_(utf8_locale()) {
  const char* term = std::getenv("TERM");
  terminal_ = isatty(settings.fd) == 1 && !(term && std::strcmp(term, "dumb") == 0);
  colours_ = isatty(2) == 1 && !set("NO_COLOR") && !(term && std::strcmp(term, "dumb") == 0);
}

Screen::Screen(const Options& options)
    : Screen(ScreenSettings{options.get<bool>("json") ? 2 : 1, options.get<bool>("quiet"),
                            options.get<bool>("verbose")}) {}

void Screen::line(const std::string& text) {
  if (settings_.quiet) return;
  if (!drawn_) return put(settings_.fd, text + "\n");
  put(settings_.fd, "\r\x1b[K" + text + "\n");
  draw();
}

void Screen::detail(const std::string& text) {
  if (settings_.verbose) line(text);
}

void Screen::warning(const std::string& text) {
  if (drawn_) put(settings_.fd, "\r\x1b[K");
  put(2, (colours_ ? "\x1b[33mwarning:\x1b[0m " : "warning: ") + text + "\n");
  if (drawn_) draw();
}

void Screen::progress(const Progress& progress) {
  if (settings_.quiet) return;
  if (!terminal_) return put(settings_.fd, progress_line(progress) + "\n");
  bar_ = progress;
  pending_ = true;
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  draw();
}

// One write that overwrites in place and then clears the rest: nothing blinks. A column stays free, since
// some terminals wrap when the last one is filled.
void Screen::draw() {
  put(settings_.fd, "\r" + progress_bar(*bar_, columns_of(settings_.fd) - 1, blocks_) + "\x1b[K");
  drawn_ = true;
  pending_ = false;
}

void Screen::finish() {
  if (pending_) draw();
  if (drawn_) put(settings_.fd, "\n");
  drawn_ = false;
  bar_.reset();
}

void Screen::put(int fd, const std::string& text) const {
  for (size_t at = 0; at < text.size();) {
    const ssize_t written = write(fd, text.data() + at, text.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    at += static_cast<size_t>(written);
  }
}

}  // namespace qlora::tools
