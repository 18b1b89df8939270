#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "memory/exec.h"
#include "memory/page_backend.h"

namespace qlora {

// What went over a pager since it was made.
struct PageTraffic {
  uint64_t bytes_read = 0, bytes_written = 0;
  double stall_seconds = 0;  // time that the computation waited for transfers

  PageTraffic& operator+=(const PageTraffic& o) {
    bytes_read += o.bytes_read;
    bytes_written += o.bytes_written;
    stall_seconds += o.stall_seconds;
    return *this;
  }
  PageTraffic operator-(const PageTraffic& o) const {
    return {bytes_read - o.bytes_read, bytes_written - o.bytes_written, stall_seconds - o.stall_seconds};
  }
};

// Pages that live elsewhere (in a file, in pinned memory) and pass through N slots of the arena. The order of
// use is known: in rehearsal the very calls of a pass are recorded in the trace, and on a real device they
// must come again in that order. From it follows, before the first step, which slot each use gets and when
// its transfer starts: a page goes to the slot that has been free for longest (so without repetition use k
// has slot k mod N), and its fetch starts as soon as the use before it in that slot is released, N - 1 uses
// ahead. A page that still lies in a slot is not read again. A slot that was written to goes back on its own
// time, and is filled anew only after that.
//
// A pager belongs to the thread of its Exec. The addresses of slots are multiples of
// PageBackend::kPageAlign.
class Pager {
 public:
  enum class Life : uint8_t {
    lasting,   // what a pass leaves in a page is there for the next pass
    transient  // a page's content ends with the pass: it is written back only if the pass reads it again
  };
  // `name` tells pagers apart in traces. Pages [0, pages), each of at most slot_bytes.
  Pager(std::string name, uint32_t pages, size_t slot_bytes, int slots, Life life);
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;
  ~Pager();

  const std::string& name() const { return name_; }
  int slots() const { return slots_; }
  size_t slot_bytes() const { return slot_bytes_; }
  uint32_t pages() const { return static_cast<uint32_t>(held_bytes_.size()); }
  // What they take where they live.
  size_t home_bytes() const;
  // What a pass takes of the arena.
  size_t staging_bytes() const;

  // After the rehearsals, before the first pass on a real device: where the pages are, and the traces whose
  // passes will come (traces without a use of this pager are fine). Later passes allocate nothing.
  void connect(std::unique_ptr<PageBackend> backend, std::initializer_list<const Trace*> traces);
  bool connected() const { return backend_ != nullptr; }
  // What one pass of a rehearsed trace will transfer: bytes alone, no time.
  PageTraffic planned(const Trace& trace) const;
  std::string how() const { return backend_->how(); }
  const PageTraffic& traffic() const { return traffic_; }

  // One phase's uses of the pages. Slots are allocated when it begins and freed when it dies; a trace has at
  // most one pass of each pager. Errors of transfers are thrown by whichever call meets them (Category::io);
  // after one, or when an exception passes through, the destructor gives up what is under way.
  class Pass {
   public:
    Pass(Pager& pager, Exec& exec);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

    // The page's bytes, waited for; with Access::write, room for them. Several pages may be held at once, one
    // page once at a time. `bytes` may be less than was planned: what is written back, and what later reads
    // may ask for, is then that much.
    std::byte* acquire(uint32_t page, size_t bytes, Access access);
    void release(uint32_t page);
    // The end of the sequence: everything that was to be written back has been, or an error says so.
    void end();

   private:
    Pager& pager_;
    Exec& exec_;
    Buffer slots_;
    bool ended_ = false;
  };

 private:
  // One use as planned.
  struct Use {
    uint32_t page;
    Access access;
    size_t bytes;
    int slot;
    bool fetch = false;     // its page is not in the slot yet, and is read
    bool store = false;     // written back when this use is released
    int64_t follower = -1;  // the use of another page that has the slot next
  };
  struct Plan {
    std::vector<Use> uses;
    std::vector<int64_t> first;  // of each slot: its first use, or -1
  };
  enum class Way : uint8_t { none, in, out };
  struct Slot {
    std::byte* data = nullptr;
    Way way = Way::none;    // the transfer last started, if it may be under way
    uint32_t page = 0;      // of that transfer
    int64_t incoming = -1;  // the use whose page is to be fetched here once the way is free
    int64_t held = -1;      // the use that holds it, or -1
  };

  Plan planned(const std::vector<PageUse>& uses) const;
  void plan_stores(Plan& plan) const;
  void begin(Exec& e, std::byte* data);
  std::byte* acquire(uint32_t page, size_t bytes, Access access);
  void release(uint32_t page);
  void end();
  void expect(int slot, int64_t use);
  void start(int slot, bool write, uint32_t page);
  void advance();
  bool try_fetch(int slot);
  void await(int slot);
  void record(Exec& e, uint32_t page, size_t bytes, Access access);
  void record_release(Exec& e, uint32_t page);

  std::string name_;
  size_t slot_bytes_;
  int slots_;
  Life life_;
  std::vector<size_t> held_bytes_;  // of each page: what of it there is to be read
  std::unique_ptr<PageBackend> backend_;
  std::map<const Trace*, Plan> plans_;
  std::vector<Slot> slot_;
  const Plan* plan_ = nullptr;  // of the pass under way
  size_t next_ = 0;
  PageTraffic traffic_;
};

}  // namespace qlora
