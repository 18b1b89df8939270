#include "train/output_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "memory/file.h"

namespace qlora {
namespace fs = std::filesystem;
namespace {

constexpr const char* kLock = ".lock";

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
// What a killed run was writing: checkpoints (.partial-N), best/ and single files (.NAME.partial-PID-COUNT).
bool is_leftover(const std::string& name) {
  return starts_with(name, ".") &&
         (name.find(".partial-") != std::string::npos || starts_with(name, ".best."));
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename().string());
  return names;
}

}  // namespace

OutputFolder::OutputFolder(const std::string& path, Use use) : path_(path), use_(use) {
  try {
    if (fs::exists(path) && !fs::is_directory(path))
      fail(Category::usage, path, ": is a file; give a folder as --output-dir");
    if (fs::is_symlink(path) && !fs::exists(path))
      fail(Category::usage, path, ": is a link to nothing; make what it names, or give another --output-dir");
    made_ = fs::create_directories(path);
    lock();
    const std::vector<std::string> names = names_in(path);
    if (use == Use::fresh && std::any_of(names.begin(), names.end(), is_run)) {
      close(fd_);
      fail(Category::usage, path,
           ": holds a run already; go on with it (--resume-from-checkpoint last), replace it "
           "(--overwrite-output-dir) or give another --output-dir");
    }
  } catch (const fs::filesystem_error& e) {
    fail_by_system(path, e.code());
  }
}

void OutputFolder::clear() const {
  try {
    const std::vector<std::string> names = names_in(path_);
    // Without a checkpoint, metrics are those of a run that died before its first: its results go as well.
    const bool died = std::none_of(names.begin(), names.end(), is_run) &&
                      std::find(names.begin(), names.end(), "metrics.jsonl") != names.end();
    for (const std::string& name : names)
      if (is_leftover(name) || ((died || use_ == Use::overwrite) && (is_run(name) || is_result(name))))
        fs::remove_all(fs::path(path_) / name);
  } catch (const fs::filesystem_error& e) {
    fail_by_system(path_, e.code());
  }
}

void OutputFolder::lock() {
  const std::string file = path_ + "/" + kLock;
  fd_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_by_system(file, {errno, std::generic_category()});
  int reason = 0;
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    reason = errno;
  } else {
    // Whoever held it may have removed file and folder meanwhile: the lock counts on the file of this name.
    struct stat named = {}, held = {};
    if (stat(file.c_str(), &named) == 0 && fstat(fd_, &held) == 0 && named.st_ino == held.st_ino) return;
    reason = EWOULDBLOCK;
  }
  close(fd_);
  fd_ = -1;
  if (reason == EWOULDBLOCK)
    fail(Category::usage, path_,
         ": another process is writing there; wait for it or give another --output-dir");
  fail_by_system(file, {reason, std::generic_category()});
}

OutputFolder::~OutputFolder() {
  if (fd_ < 0) return;
  std::error_code ignored;
  if (made_) {
    // Made for a run that wrote nothing, it goes again; one that holds more does not go without its lock.
    size_t entries = 0;
    for (fs::directory_iterator it(path_, ignored), end; it != end; it.increment(ignored)) ++entries;
    if (entries == 1 && fs::remove(path_ + "/" + kLock, ignored)) fs::remove(path_, ignored);
  }
  close(fd_);
}

}  // namespace qlora
