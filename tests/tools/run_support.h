#pragma once
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/io/json.h"

// The programs themselves, run as a user runs them.
namespace qlora::testing {

using Words = std::vector<std::string>;

struct Ended {
  int code = 0;  // of the exit, or 128 + the signal that ended it
  bool killed = false;
  std::string out, err;
};

// What the program finds: limits of the system, in bytes, and variables of the environment.
struct Limits {
  std::optional<uint64_t> file = {};       // beyond which a write fails as on a full disk
  std::optional<uint64_t> addresses = {};  // ulimit -v
  std::map<std::string, std::string> environment = {};
};

// A program under way; its output goes to files, so that it never waits for a reader.
class Running {
 public:
  Running(const std::string& program, const Words& words, const Limits& limits = {});
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  pid_t pid() const { return pid_; }
  std::string out() const;
  // Waits until `there` holds, or the program ended: false then.
  bool wait_for(const std::function<bool()>& there);
  // Whether it is still under way after that time.
  bool stays(std::chrono::milliseconds time);
  Ended wait();

 private:
  bool reap(int flags);
  pid_t pid_ = -1;
  bool over_ = false;
  int status_ = 0;
  std::string out_, err_;
};

Ended run(const std::string& program, const Words& words, const Limits& limits = {});

std::string slurp(const std::string& path);
std::vector<std::string> lines_of(const std::string& text);
std::string golden_model();  // a tiny llama without a tokenizer
std::string golden_rows();   // its 20 rows of token ids

// A short run over it, saved after each step, with all that draws random numbers; later words win.
Words train_words(const std::string& out, const Words& more = {});

// metrics.jsonl without what a clock or the machine says.
std::vector<Json> metrics_of(const std::string& out);
std::string adapter_of(const std::string& out);

}  // namespace qlora::testing
