#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "memory/page_backend.h"
#include "memory/pager.h"

namespace qlora::testing {

// A random pass over pages: acquire, check against a model of their content, change, release.
struct PagerSchedule {
  struct Step {
    bool acquire;
    uint32_t page;
    Access access;
  };
  uint32_t pages;
  size_t page_bytes;
  int slots;
  Pager::Life life;
  std::vector<Step> steps;

  // At most slots - 1 pages are held at once.
  PagerSchedule(uint64_t seed, size_t page_bytes, Pager::Life life) : page_bytes(page_bytes), life(life) {
    std::mt19937_64 random(seed);
    slots = 2 + static_cast<int>(random() % 4);
    pages = 1 + static_cast<uint32_t>(random() % 9);
    std::vector<uint32_t> held;
    std::vector<bool> written(pages, life == Pager::Life::lasting);
    for (int n = 0; n < 60 || !held.empty(); ++n) {
      const bool room = held.size() + 1 < static_cast<size_t>(slots) && n < 60;
      if (room && (held.empty() || random() % 2 == 0)) {
        const auto page = static_cast<uint32_t>(random() % pages);
        if (std::count(held.begin(), held.end(), page) != 0) continue;
        const Access access = written[page] ? static_cast<Access>(random() % 3) : Access::write;
        written[page] = true;
        held.push_back(page);
        steps.push_back({true, page, access});
      } else if (!held.empty()) {
        const size_t i = random() % held.size();
        steps.push_back({false, held[i], Access::read});
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
  }
};

// What the pages should hold, over any number of passes.
class PagerModel {
 public:
  // `settle` is called before the host touches a page: where computation is a stream, it waits for that.
  explicit PagerModel(
      const PagerSchedule& s, std::function<void()> settle = [] {})
      : schedule_(s),
        settle_(std::move(settle)),
        content_(s.pages, std::vector<std::byte>(s.page_bytes)),
        bytes_(s.pages, s.page_bytes) {}

  // Runs the pass; `number` chooses what is written, and how much less than was planned.
  void pass(Pager& pager, Exec& e, int number) {
    std::mt19937_64 random(static_cast<uint64_t>(number));
    Pager::Pass pass(pager, e);
    std::map<uint32_t, std::pair<std::byte*, Access>> held;
    for (const PagerSchedule::Step& s : schedule_.steps) {
      if (!s.acquire) {
        const auto [data, access] = held.at(s.page);
        held.erase(s.page);
        if (!e.rehearsing()) leave(s.page, data, access, random);
        pass.release(s.page);
        continue;
      }
      if (s.access == Access::write && !e.rehearsing())
        bytes_[s.page] = schedule_.page_bytes - random() % (schedule_.page_bytes / 2);
      std::byte* const data = pass.acquire(s.page, bytes_[s.page], s.access);
      held[s.page] = {data, s.access};
      settle_();
      if (!e.rehearsing() && s.access != Access::write) compare(s.page, data);
    }
    pass.end();
  }

  const std::vector<std::byte>& content(uint32_t page) const { return content_[page]; }
  size_t bytes(uint32_t page) const { return bytes_[page]; }

 private:
  void compare(uint32_t page, const std::byte* data) const {
    ASSERT_TRUE(std::equal(data, data + bytes_[page], content_[page].begin())) << "page " << page;
  }
  void leave(uint32_t page, std::byte* data, Access access, std::mt19937_64& random) {
    if (access == Access::read) return compare(page, data);  // still
    const auto seed = random();
    for (size_t i = 0; i < bytes_[page]; ++i)
      content_[page][i] = data[i] = static_cast<std::byte>((seed + i * 7) >> (i % 8));
  }

  const PagerSchedule& schedule_;
  std::function<void()> settle_;
  std::vector<std::vector<std::byte>> content_;
  std::vector<size_t> bytes_;
};

// A schedule rehearsed, laid out, and run `passes` times over the backend that `open` makes.
class PagerRun {
 public:
  using Open = std::function<std::unique_ptr<PageBackend>(const PagerSchedule&)>;
  PagerRun(
      const PagerSchedule& s, const Open& open, std::function<void()> settle = [] {})
      : model(s, std::move(settle)), pager("pages", s.pages, s.page_bytes, s.slots, s.life) {
    Exec rehearsal = Exec::rehearsal(1);
    {
      Phase phase(rehearsal, trace_);
      model.pass(pager, rehearsal, 0);
    }
    trace_.lay_out();
    arena_ = Arena(trace_.bytes);
    exec_ = std::make_unique<Exec>(Device{DeviceKind::cpu, 0}, 1, arena_.data());
    exec_->set_poison(true);
    pager.connect(open(s), {&trace_});
  }
  void passes(int count) {
    for (int i = 0; i < count; ++i) {
      Phase phase(*exec_, trace_);
      model.pass(pager, *exec_, i);
    }
  }
  PagerModel model;
  Pager pager;

 private:
  Trace trace_{"test"};
  Arena arena_;
  std::unique_ptr<Exec> exec_;
};

}  // namespace qlora::testing
