// io_uring by its system calls (man 7 io_uring): two rings shared with the kernel, one of requests and one of
// completions. One thread uses both.
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "memory/page_backends.h"

namespace qlora {
namespace {

// A mapped part of a ring.
class Mapping {
 public:
  Mapping() = default;
  Mapping(int fd, size_t bytes, off_t what) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    if (data_ == MAP_FAILED) data_ = nullptr;
  }
  Mapping(Mapping&& o) noexcept : data_(std::exchange(o.data_, nullptr)), bytes_(o.bytes_) {}
  Mapping& operator=(Mapping&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~Mapping() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }
  explicit operator bool() const { return data_ != nullptr; }
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

class Ring {
 public:
  // False, with errno set, where the system has none to give.
  bool open(unsigned entries) {
    io_uring_params p = {};
    fd_ = static_cast<int>(::syscall(__NR_io_uring_setup, entries, &p));
    if (fd_ < 0) return false;
    // Without NODROP completions could be lost; both came before 5.6, whose READ and WRITE are used.
    if ((p.features & IORING_FEAT_SINGLE_MMAP) == 0 || (p.features & IORING_FEAT_NODROP) == 0 ||
        (p.features & IORING_FEAT_RW_CUR_POS) == 0) {
      errno = ENOSYS;
      return false;
    }
    const size_t bytes = std::max(p.sq_off.array + p.sq_entries * sizeof(uint32_t),
                                  p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe));
    rings_ = Mapping(fd_, bytes, IORING_OFF_SQ_RING);
    requests_ = Mapping(fd_, p.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
    if (!rings_ || !requests_) return false;
    sq_tail_ = rings_.at<std::atomic<uint32_t>>(p.sq_off.tail);
    sq_mask_ = *rings_.at<uint32_t>(p.sq_off.ring_mask);
    sq_array_ = rings_.at<uint32_t>(p.sq_off.array);
    cq_head_ = rings_.at<std::atomic<uint32_t>>(p.cq_off.head);
    cq_tail_ = rings_.at<std::atomic<uint32_t>>(p.cq_off.tail);
    cq_mask_ = *rings_.at<uint32_t>(p.cq_off.ring_mask);
    cqes_ = rings_.at<io_uring_cqe>(p.cq_off.cqes);
    return true;
  }
  Ring() = default;
  ~Ring() {
    if (fd_ >= 0) ::close(fd_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Hands one request to the kernel. 0, or an errno.
  int submit(bool write, int file, uint64_t offset, std::byte* memory, size_t bytes, uint64_t tag) {
    const uint32_t tail = sq_tail_->load(std::memory_order_relaxed), index = tail & sq_mask_;
    auto* const r = requests_.at<io_uring_sqe>(index * sizeof(io_uring_sqe));
    std::memset(r, 0, sizeof *r);
    r->opcode = write ? IORING_OP_WRITE : IORING_OP_READ;
    r->fd = file;
    r->off = offset;
    r->addr = reinterpret_cast<uint64_t>(memory);
    r->len = static_cast<uint32_t>(bytes);
    r->user_data = tag;
    sq_array_[index] = index;
    sq_tail_->store(tail + 1, std::memory_order_release);
    return enter(1, 0);
  }
  // Waits until there is a completion. 0, or an errno.
  int wait() { return enter(0, 1); }
  // f(tag, result) for each completion that is there.
  template <class F>
  void reap(F&& f) {
    uint32_t head = cq_head_->load(std::memory_order_relaxed);
    while (head != cq_tail_->load(std::memory_order_acquire)) {
      const io_uring_cqe done = cqes_[head & cq_mask_];
      cq_head_->store(++head, std::memory_order_release);  // before f, which may submit again
      f(done.user_data, done.res);
      head = cq_head_->load(std::memory_order_relaxed);
    }
  }

 private:
  int enter(unsigned submitted, unsigned completed) {
    for (int tries = 0;; ++tries) {
      const long n = ::syscall(__NR_io_uring_enter, fd_, submitted, completed,
                               completed > 0 ? IORING_ENTER_GETEVENTS : 0u, nullptr, 0);
      if (n >= 0) return 0;
      if (errno == EINTR) continue;
      // EAGAIN, EBUSY: out of some resource that completions give back.
      if ((errno != EAGAIN && errno != EBUSY) || tries == 1000) return errno;
      ::usleep(1000);
    }
  }

  int fd_ = -1;
  Mapping rings_, requests_;
  std::atomic<uint32_t>*sq_tail_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
  uint32_t *sq_array_ = nullptr, sq_mask_ = 0, cq_mask_ = 0;
  io_uring_cqe* cqes_ = nullptr;
};

class UringPages : public PageBackend {
 public:
  // Moves out of `files` only when it works.
  static std::unique_ptr<UringPages> make(PageFiles& files, int channels, std::string& why_not) {
    std::unique_ptr<UringPages> b(new UringPages);
    const size_t most = std::max<size_t>(files.most_requests(), 1) * static_cast<size_t>(channels);
    if (most > 4096) {
      why_not = cat(most, " requests at once are more than a ring has");
      return nullptr;
    }
    if (!b->ring_.open(static_cast<unsigned>(most))) {
      why_not = std::generic_category().message(errno);
      return nullptr;
    }
    b->files_ = std::move(files);
    b->channels_.resize(static_cast<size_t>(channels));
    b->requests_.resize(most);
    for (size_t i = 0; i < most; ++i) b->requests_[i].next_free = static_cast<int>(i) - 1;
    b->free_ = static_cast<int>(most) - 1;
    return b;
  }
  ~UringPages() override { abandon(); }

  std::string how() const override { return "io_uring, " + files_.how(); }

  void start(int channel, const PageTransfer& t) override {
    Channel& c = at(channel);
    check(c.under_way == 0 && c.fault.error == 0, "channel ", channel, " is not free");
    files_.for_each_request(
        t, [&](size_t file, uint64_t offset, std::byte* memory, size_t bytes, size_t needed) {
          const int index = free_;
          Request& r = requests_[static_cast<size_t>(index)];
          free_ = r.next_free;
          r = {channel, t.write, file, offset, memory, bytes, needed, -1};
          ++c.under_way;
          submit(index);
        });
  }

  bool ready(int channel) override {
    reap();
    if (at(channel).under_way > 0) return false;
    report(channel);
    return true;
  }

  void wait(int channel) override {
    for (reap(); at(channel).under_way > 0; reap())
      if (const int error = ring_.wait(); error != 0)
        fail(Category::io, "io_uring stopped working: ", std::generic_category().message(error),
             "; run again");
    report(channel);
  }

  void computed(int) override {}

  void abandon() noexcept override {
    for (Channel& c : channels_) {
      for (reap(); c.under_way > 0; reap())
        if (ring_.wait() != 0) return;
      c.fault = {};
    }
  }

 private:
  struct Request {
    int channel = 0;
    bool write = false;
    size_t file = 0;
    uint64_t offset = 0;
    std::byte* memory = nullptr;
    size_t bytes = 0, needed = 0;
    int next_free = -1;
  };
  struct Channel {
    int under_way = 0;
    PageFault fault;
  };

  UringPages() = default;
  Channel& at(int channel) { return channels_[static_cast<size_t>(channel)]; }

  void submit(int index) {
    const Request& r = requests_[static_cast<size_t>(index)];
    const int error = ring_.submit(r.write, files_.files[r.file].descriptor(), r.offset, r.memory, r.bytes,
                                   static_cast<uint64_t>(index));
    if (error != 0) finish(index, error);
  }

  void finish(int index, int error) {
    Request& r = requests_[static_cast<size_t>(index)];
    Channel& c = at(r.channel);
    if (error != 0 && c.fault.error == 0) c.fault = {error, r.file, r.offset, r.write};
    --c.under_way;
    r.next_free = free_;
    free_ = index;
  }

  void reap() {
    ring_.reap([this](uint64_t tag, int32_t result) {
      const int index = static_cast<int>(tag);
      Request& r = requests_[tag];
      if (result == -EINTR || result == -EAGAIN) return submit(index);
      if (result < 0) return finish(index, -result);
      const size_t done = static_cast<size_t>(result);
      if (done >= r.needed) return finish(index, 0);
      // The rest of a short transfer; what is no multiple of the alignment goes over again.
      const size_t whole = done / kPageAlign * kPageAlign;
      if (done == 0 || whole == 0) return finish(index, r.write ? EIO : kFileShrank);
      r.offset += whole, r.memory += whole, r.bytes -= whole, r.needed -= whole;
      submit(index);
    });
  }

  void report(int channel) {
    const PageFault fault = std::exchange(at(channel).fault, {});
    if (fault.error != 0) fail_transfer(files_, fault);
  }

  Ring ring_;
  PageFiles files_;
  std::vector<Channel> channels_;
  std::vector<Request> requests_;
  int free_ = -1;
};

}  // namespace

std::unique_ptr<PageBackend> uring_pages(PageFiles& files, int channels, std::string& why_not) {
  return UringPages::make(files, channels, why_not);
}

std::unique_ptr<PageBackend> file_pages(PageFiles files, int channels) {
  std::string why;
  if (std::unique_ptr<PageBackend> b = uring_pages(files, channels, why)) return b;
  return thread_pages(std::move(files), channels, "no io_uring here: " + why);
}

}  // namespace qlora
