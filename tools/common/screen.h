#pragma once
// What a run says while it runs: a bar on a terminal, plain lines on a pipe.
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "tools/common/options.h"

namespace qlora::tools {

struct Progress {
  std::string what = "step";
  int64_t done = 0, total = 0;  // total 0: not known
  std::optional<double> loss = {}, norm = {}, tokens_per_second = {}, seconds_left = {};
  std::optional<uint64_t> bytes = {};
};

// step 12/100 | loss 1.234 | norm 0.41 | 1,830 tok/s | 7.2 GiB | 1:23 left
std::string progress_line(const Progress& progress);

// The same behind a bar, at most `columns` cells wide. What does not fit is left out: norm first, then
// memory, the bar's length, speed, loss, time; what is left is cut. `blocks`: the bar from block characters
// instead of # and -.
std::string progress_bar(const Progress& progress, int columns, bool blocks);

struct ScreenSettings {
  int fd = 1;
  bool quiet = false;
  bool verbose = false;
};

// Colours and bars only on a terminal whose TERM is not dumb; no colours where NO_COLOR is set. One thread at
// a time. A write that fails is not reported: a run outlives its terminal.
class Screen {
 public:
  explicit Screen(const ScreenSettings& settings);
  // stdout, or stderr where stdout belongs to --json's result.
  explicit Screen(const Options& options);
  ~Screen() { finish(); }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  bool terminal() const { return terminal_; }

  void line(const std::string& text);     // stays; not under --quiet
  void detail(const std::string& text);   // only under --verbose
  void warning(const std::string& text);  // on stderr, also under --quiet
  // On a terminal the bar is drawn anew, at most ten times a second; on a pipe each call is a line, so call
  // it as often as --logging-steps says.
  void progress(const Progress& progress);
  // Leaves the last bar where it stands. Called by the destructor; a later progress() begins a new bar.
  void finish();

 private:
  void draw();
  void put(int fd, const std::string& text) const;

  ScreenSettings settings_;
  bool terminal_, colours_, blocks_;
  std::optional<Progress> bar_;  // the one on the screen or not yet drawn
  bool drawn_ = false;           // the cursor stands behind a bar
  bool pending_ = false;         // bar_ is newer than what is drawn
  std::chrono::steady_clock::time_point last_draw_{};
};

}  // namespace qlora::tools
