#include "tests/tools/run_support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace qlora::testing {
namespace {

std::string fresh_file() {
  std::string name = (std::filesystem::temp_directory_path() / "qlora-run-XXXXXX").string();
  const int fd = mkstemp(name.data());
  if (fd < 0) throw std::runtime_error("cannot make a file");
  close(fd);
  return name;
}

}  // namespace

Running::Running(const std::string& program, const Words& words, const Limits& limits)
    : out_(fresh_file()), err_(fresh_file()) {
  std::vector<std::string> all = words;
  all.insert(all.begin(), std::string(QLORA_BIN) + "/" + program);
  std::vector<char*> argv;
  for (std::string& word : all) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error("cannot fork");
  if (pid_ > 0) return;
  dup2(open("/dev/null", O_RDONLY), 0);
  dup2(open(out_.c_str(), O_WRONLY), 1);
  dup2(open(err_.c_str(), O_WRONLY), 2);
  const auto limit = [](int what, std::optional<uint64_t> bytes) {
    const rlimit both{bytes.value_or(0), bytes.value_or(0)};
    if (bytes) setrlimit(static_cast<__rlimit_resource_t>(what), &both);
  };
  limit(RLIMIT_FSIZE, limits.file);
  limit(RLIMIT_AS, limits.addresses);
  // These tests are the CPU's, and the emulated device's, where there is a card, too.
  setenv("CUDA_VISIBLE_DEVICES", "-1", 1);
  for (const auto& [name, value] : limits.environment) setenv(name.c_str(), value.c_str(), 1);
  execv(argv[0], argv.data());
  _exit(127);
}

Running::~Running() {
  if (!over_) {
    kill(pid_, SIGKILL);
    reap(0);
  }
  unlink(out_.c_str());
  unlink(err_.c_str());
}

bool Running::reap(int flags) {
  if (!over_ && waitpid(pid_, &status_, flags) == pid_) over_ = true;
  return over_;
}

std::string Running::out() const { return slurp(out_); }

bool Running::wait_for(const std::function<bool()>& there) {
  while (!there()) {
    if (reap(WNOHANG)) return false;
    usleep(500);
  }
  return true;
}

bool Running::stays(std::chrono::milliseconds time) {
  usleep(static_cast<useconds_t>(1000 * time.count()));
  return !reap(WNOHANG);
}

Ended Running::wait() {
  reap(0);
  const bool killed = WIFSIGNALED(status_);
  return {killed ? 128 + WTERMSIG(status_) : WEXITSTATUS(status_), killed, slurp(out_), slurp(err_)};
}

Ended run(const std::string& program, const Words& words, const Limits& limits) {
  return Running(program, words, limits).wait();
}

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

std::string golden_model() { return std::string(QLORA_GOLDEN) + "/models/llama"; }
std::string golden_rows() { return golden_model() + "/train.jsonl"; }

Words train_words(const std::string& out, const Words& more) {
  Words words = {"--model",          golden_model(),
                 "--dataset",        golden_rows(),
                 "--output-dir",     out,
                 "--max-seq-length", "64",
                 "--lora-r",         "4",
                 "--save-steps",     "1",
                 "--threads",        "1",
                 "--learning-rate",  "1e-2",
                 "--report-to",      "none"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::vector<Json> metrics_of(const std::string& out) {
  std::vector<Json> lines;
  for (const std::string& line : lines_of(slurp(out + "/metrics.jsonl"))) {
    Json j = Json::parse(line);
    for (const char* timing : {"seconds", "tokens_per_second", "memory_bytes"}) j.erase(timing);
    lines.push_back(j);
  }
  return lines;
}

std::string adapter_of(const std::string& out) { return slurp(out + "/adapter_model.safetensors"); }

}  // namespace qlora::testing
