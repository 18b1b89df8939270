#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "memory/page_backend.h"

namespace qlora::testing {

// Pages in memory, by an adversary: transfers happen late and out of order, what is read is poison until it
// is waited for, a transfer out takes the bytes that are there at its end, and anything the contract forbids
// fails the test. Fails on demand.
class CheckingPages : public PageBackend {
 public:
  struct Options {
    uint64_t seed = 0;                         // of delays and order; 0: everything as late as it may be
    int64_t fail_at = -1;                      // the transfer, counted from 0, that fails
    size_t room = SIZE_MAX;                    // bytes that fit on its disk: writes beyond them fail
    std::vector<PageTransfer>* log = nullptr;  // of what was started
  };
  // `source` is where pages are read from until they are written to; null: zero bytes.
  CheckingPages(uint32_t pages, size_t page_bytes, int channels, const Options& o,
                std::unique_ptr<PageBackend> source = nullptr)
      : options_(o),
        source_(std::move(source)),
        random_(options_.seed),
        page_bytes_(page_bytes),
        pages_(pages, std::vector<std::byte>(page_bytes)),
        known_(pages, source_ == nullptr),
        channels_(static_cast<size_t>(channels)) {}

  std::string how() const override { return "checked"; }

  void start(int channel, const PageTransfer& t) override {
    Channel& c = at(channel);
    EXPECT_FALSE(c.busy) << "channel " << channel << " carries a transfer";
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.memory) % kPageAlign, 0u);
    ASSERT_LT(t.page, pages_.size());
    ASSERT_LE(t.bytes, page_bytes_);
    for (const Channel& o : channels_) {
      if (!o.busy) continue;
      EXPECT_NE(o.transfer.page, t.page) << "is under way on two channels";
      EXPECT_TRUE(o.transfer.memory + page_bytes_ <= t.memory || t.memory + page_bytes_ <= o.transfer.memory)
          << "the memory of pages " << o.transfer.page << " and " << t.page;
    }
    if (options_.log != nullptr) options_.log->push_back(t);
    c.transfer = t;
    c.busy = true;
    c.delay = options_.seed == 0 ? INT64_MAX : static_cast<int64_t>(random_() % 4);
    c.failure = started_++ == options_.fail_at ? "by order" : nullptr;
    if (t.write && (written_ += t.bytes) > options_.room) c.failure = "No space left on device";
    if (!t.write) std::memset(t.memory, 0xff, t.bytes);
  }
  bool ready(int channel) override {
    for (size_t n = channels_.size(); n > 0; --n) {
      Channel& c = channels_[random_() % channels_.size()];
      if (c.busy && c.delay-- <= 0) carry_out(c);
    }
    if (at(channel).busy) return false;
    report(channel);
    return true;
  }
  void wait(int channel) override {
    if (options_.seed != 0)
      for (Channel& c : channels_)
        if (c.busy && random_() % 2 == 0) carry_out(c);
    if (at(channel).busy) carry_out(at(channel));
    report(channel);
  }
  void computed(int) override {}
  void abandon() noexcept override {
    for (Channel& c : channels_) c = {};
  }

  std::vector<std::byte>& page(uint32_t p) { return pages_[p]; }
  int64_t started() const { return started_; }

 private:
  struct Channel {
    bool busy = false;
    PageTransfer transfer;
    int64_t delay = 0;
    const char* failure = nullptr;
    const char* failed = nullptr;
  };
  Channel& at(int channel) { return channels_[static_cast<size_t>(channel)]; }

  void carry_out(Channel& c) {
    const PageTransfer& t = c.transfer;
    c.busy = false;
    c.failed = c.failure;
    if (c.failed != nullptr) return;
    if (!known_[t.page] && !t.write) {
      source_->start(0, t);
      source_->wait(0);
      return;
    }
    known_[t.page] = true;
    std::byte* const page = pages_[t.page].data();
    std::memcpy(t.write ? page : t.memory, t.write ? t.memory : page, t.bytes);
  }
  void report(int channel) {
    if (const char* why = std::exchange(at(channel).failed, nullptr))
      fail(Category::io, "pages: page ", at(channel).transfer.page, ": a transfer failed: ", why,
           "; free some space and run again");
  }

  Options options_;
  std::unique_ptr<PageBackend> source_;
  std::mt19937_64 random_;
  size_t page_bytes_;
  std::vector<std::vector<std::byte>> pages_;
  std::vector<bool> known_;
  std::vector<Channel> channels_;
  int64_t started_ = 0;
  size_t written_ = 0;
};

}  // namespace qlora::testing
