#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "memory/page_backends.h"

namespace qlora {
namespace {

// One request with pread or pwrite. 0, an errno, or kFileShrank.
int transfer(int file, bool write, uint64_t offset, std::byte* memory, size_t bytes, size_t needed) {
  size_t done = 0;
  while (done < needed) {
    const off_t at = static_cast<off_t>(offset + done);
    const ssize_t n = write ? ::pwrite(file, memory + done, bytes - done, at)
                            : ::pread(file, memory + done, bytes - done, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    done += static_cast<size_t>(n);
    if (done >= needed) break;
    // O_DIRECT goes on at a multiple of the alignment only.
    if (const size_t whole = done / PageBackend::kPageAlign * PageBackend::kPageAlign;
        n == 0 || whole + static_cast<size_t>(n) <= done)
      return write ? EIO : kFileShrank;
    else
      done = whole;
  }
  return 0;
}

class ThreadPages : public PageBackend {
 public:
  ThreadPages(PageFiles files, int channels, std::string why)
      : files_(std::move(files)), why_(std::move(why)), channels_(static_cast<size_t>(channels)) {
    queue_.reserve(channels_.size());
    thread_ = std::thread([this] { work(); });
  }
  ~ThreadPages() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    asked_.notify_one();
    thread_.join();
  }

  std::string how() const override {
    return "a thread, " + files_.how() + (why_.empty() ? "" : " (" + why_ + ")");
  }

  void start(int channel, const PageTransfer& t) override {
    {
      const std::lock_guard lock(mutex_);
      Channel& c = at(channel);
      check(!c.busy && c.fault.error == 0, "channel ", channel, " is not free");
      c.busy = true;
      c.transfer = t;
      queue_.push_back(channel);  // at most one a channel: never grows
    }
    asked_.notify_one();
  }

  bool ready(int channel) override {
    std::unique_lock lock(mutex_);
    if (at(channel).busy) return false;
    report(channel, lock);
    return true;
  }

  void wait(int channel) override {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return !at(channel).busy; });
    report(channel, lock);
  }

  void computed(int) override {}

  void abandon() noexcept override {
    std::unique_lock lock(mutex_);
    for (Channel& c : channels_) {
      done_.wait(lock, [&] { return !c.busy; });
      c.fault = {};
    }
  }

 private:
  struct Channel {
    bool busy = false;
    PageTransfer transfer;
    PageFault fault;
  };
  Channel& at(int channel) { return channels_[static_cast<size_t>(channel)]; }

  void report(int channel, std::unique_lock<std::mutex>& lock) {
    const PageFault fault = std::exchange(at(channel).fault, {});
    lock.unlock();
    if (fault.error != 0) fail_transfer(files_, fault);
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      asked_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const int channel = queue_.front();
      queue_.erase(queue_.begin());
      const PageTransfer t = at(channel).transfer;
      lock.unlock();
      PageFault fault;
      files_.for_each_request(t, [&](size_t file, uint64_t offset, std::byte* memory, size_t bytes,
                                     size_t needed) {
        if (fault.error != 0) return;
        const int error = transfer(files_.files[file].descriptor(), t.write, offset, memory, bytes, needed);
        if (error != 0) fault = {error, file, offset, t.write};
      });
      lock.lock();
      at(channel).busy = false;
      at(channel).fault = fault;
      done_.notify_all();
    }
  }

  PageFiles files_;
  std::string why_;
  std::mutex mutex_;
  std::condition_variable asked_, done_;
  std::vector<Channel> channels_;
  std::vector<int> queue_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<PageBackend> thread_pages(PageFiles files, int channels, const std::string& why) {
  return std::make_unique<ThreadPages>(std::move(files), channels, why);
}

double measured_bandwidth(PageBackend& backend, uint32_t pages, size_t bytes) {
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(
          PageBackend::kPageAlign,
          (bytes + PageBackend::kPageAlign - 1) / PageBackend::kPageAlign * PageBackend::kPageAlign)),
      &std::free);
  if (memory == nullptr) throw std::bad_alloc();
  const auto began = std::chrono::steady_clock::now();
  for (uint32_t p = 0; p < pages; ++p) {
    backend.start(0, {false, p, memory.get(), bytes});
    backend.wait(0);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  return static_cast<double>(pages) * static_cast<double>(bytes) / took.count();
}

}  // namespace qlora
