#include "tools/common/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace qlora::tools {
namespace {

// Lock-free, so a handler may touch them.
std::atomic<int> received{0};
std::atomic<bool> polled{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void on_signal(int number) {
  int none = 0;
  if (polled.load() && received.compare_exchange_strong(none, number)) return;
  _exit(128 + number);
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a write to a checkpoint goes on
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  sigaction(SIGXFSZ, &action, nullptr);
}

PolledSignals::PolledSignals() { polled = true; }
PolledSignals::~PolledSignals() { polled = false; }

int stop_signal() { return received.load(); }

int stop_exit_code() { return received.load() ? 128 + received.load() : 0; }

}  // namespace qlora::tools
