#include "train/output_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "memory/error.h"

namespace qlora {
namespace fs = std::filesystem;
namespace {

bool starts_with(const std::string& s, const char* prefix) { return s.rfind(prefix, 0) == 0; }

// Results that a run may leave behind, besides checkpoints.
bool is_result(const std::string& name) {
  for (const char* file : {"adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "result.json",
                           "report.html", "config.yaml", "best", "runs"})
    if (name == file) return true;
  return false;
}
bool is_run(const std::string& name) {
  return starts_with(name, "checkpoint-") || name == "adapter_model.safetensors";
}
bool is_leftover(const std::string& name) {
  return starts_with(name, ".partial-") || starts_with(name, ".best.");
}

}  // namespace

OutputFolder::OutputFolder(const std::string& path, Use use) : path_(path) {
  try {
    if (fs::exists(path) && !fs::is_directory(path))
      fail(Category::usage, path, ": is a file; give a folder as --output-dir");
    fs::create_directories(path);
    lock();
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename().string());
    const bool holds_run = std::any_of(names.begin(), names.end(), is_run);
    if (holds_run && use == Use::fresh)
      fail(Category::usage, path,
           ": holds a run already; go on with it (--resume-from-checkpoint last), replace it "
           "(--overwrite-output-dir) or give another --output-dir");
    // Without a checkpoint, metrics are those of a run that died before its first: its results go as well.
    const bool died = !holds_run && std::find(names.begin(), names.end(), "metrics.jsonl") != names.end();
    for (const std::string& name : names)
      if (is_leftover(name) || ((died || use == Use::overwrite) && (is_run(name) || is_result(name))))
        fs::remove_all(fs::path(path) / name);
  } catch (const fs::filesystem_error& e) {
    fail(Category::io, path, ": ", e.code().message());
  }
}

void OutputFolder::lock() {
  const std::string file = path_ + "/.lock";
  fd_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(Category::io, file, ": ", std::strerror(errno));
  if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  const int reason = errno;
  close(fd_);
  fd_ = -1;
  if (reason == EWOULDBLOCK)
    fail(Category::usage, path_,
         ": another process is writing there; wait for it or give another --output-dir");
  fail(Category::io, file, ": ", std::strerror(reason));
}

OutputFolder::~OutputFolder() {
  if (fd_ >= 0) close(fd_);  // the file stays: removing it would let two processes lock two files of one name
}

}  // namespace qlora
