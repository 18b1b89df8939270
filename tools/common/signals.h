#pragma once
// SIGINT and SIGTERM. A tool leaves at the first one with 130 or 143; one that has work to save takes
// PolledSignals: the first signal then only sets a flag that its loop asks for, the second one leaves at
// once.

namespace qlora::tools {

// Called once by run_tool. SIGPIPE and SIGXFSZ are ignored from then on: a closed pipe and a file over
// the limit are failed writes.
void install_signal_handlers();

class PolledSignals {
 public:
  PolledSignals();
  ~PolledSignals();
  PolledSignals(const PolledSignals&) = delete;
  PolledSignals& operator=(const PolledSignals&) = delete;
};

// The signal that asked to stop (SIGINT, SIGTERM), or 0. Any thread may ask.
int stop_signal();

// What the program ends with after it: 130, 143; 0 when none came.
int stop_exit_code();

}  // namespace qlora::tools
