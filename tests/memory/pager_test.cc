#include "memory/pager.h"

#include <gtest/gtest.h>

#include "tests/memory/pager_schedule.h"
#include "tests/support/checking_pages.h"

namespace qlora::testing {
namespace {

PagerRun::Open checking(CheckingPages::Options options, CheckingPages** backend = nullptr) {
  return [options, backend](const PagerSchedule& s) {
    auto b = std::make_unique<CheckingPages>(s.pages, s.page_bytes, s.slots, options);
    if (backend != nullptr) *backend = b.get();
    return b;
  };
}

TEST(Pager, RandomSchedulesAgreeWithAModel) {
  for (uint64_t seed = 0; seed < 300; ++seed)
    for (const Pager::Life life : {Pager::Life::lasting, Pager::Life::transient}) {
      SCOPED_TRACE(seed);
      const PagerSchedule s(seed, 64, life);
      CheckingPages* backend = nullptr;
      PagerRun run(s, checking({.seed = seed / 2 * (seed % 2)}, &backend));
      run.passes(3);
      if (life == Pager::Life::transient) continue;
      for (uint32_t p = 0; p < s.pages; ++p)
        EXPECT_TRUE(std::equal(backend->page(p).begin(),
                               backend->page(p).begin() + static_cast<std::ptrdiff_t>(run.model.bytes(p)),
                               run.model.content(p).begin()))
            << "page " << p;
      if (HasFailure()) return;
    }
}

// Whichever transfer fails: one clear error, and the pass can be left.
TEST(Pager, AFailedTransferIsAnError) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const PagerSchedule s(seed, 64, Pager::Life::lasting);
    CheckingPages* backend = nullptr;
    PagerRun whole(s, checking({.seed = seed}, &backend));
    whole.passes(1);
    for (int64_t n = 0; n < backend->started(); ++n) {
      PagerRun run(s, checking({.seed = seed, .fail_at = n}));
      try {
        run.passes(1);
        FAIL() << "transfer " << n << " failed and nobody noticed";
      } catch (const Error& e) {
        EXPECT_EQ(e.category(), Category::io) << e.what();
        EXPECT_NE(std::string(e.what()).find("transfer failed"), std::string::npos) << e.what();
      }
    }
  }
}

TEST(Pager, AFullDiskIsAnError) {
  const PagerSchedule s(1, 64, Pager::Life::lasting);
  PagerRun run(s, checking({.seed = 1, .room = 200}));
  try {
    run.passes(1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_code(), 5);
    EXPECT_NE(std::string(e.what()).find("No space left"), std::string::npos);
  }
}

// Runs `pass` rehearsed and then for real over a checking backend with everything as late as may be.
struct Fixed {
  std::vector<PageTransfer> log;
  PageTraffic traffic;
  template <class F>
  Fixed(int slots, Pager::Life life, F&& pass) {
    Pager pager("pages", 16, 64, slots, life);
    Trace trace("test");
    {
      Exec e = Exec::rehearsal(1);
      Phase phase(e, trace);
      Pager::Pass p(pager, e);
      pass(p, std::vector<PageTransfer>{}, true);
      p.end();
    }
    trace.lay_out();
    Arena arena(trace.bytes);
    Exec e({DeviceKind::cpu, 0}, 1, arena.data());
    pager.connect(std::make_unique<CheckingPages>(16, 64, slots, CheckingPages::Options{.log = &log}),
                  {&trace});
    Phase phase(e, trace);
    Pager::Pass p(pager, e);
    pass(p, log, false);
    p.end();
    traffic = pager.traffic();
  }
};

// The fetch of use k + N - 1 starts when use k - 1 is released, not sooner and not later.
TEST(Pager, LooksAheadOverItsSlots) {
  for (const int slots : {1, 2, 3, 5}) {
    SCOPED_TRACE(slots);
    const Fixed run(slots, Pager::Life::lasting,
                    [&](Pager::Pass& p, const std::vector<PageTransfer>& log, bool rehearsing) {
                      for (uint32_t k = 0; k < 10; ++k) {
                        const size_t due = std::min<size_t>(10, k + static_cast<size_t>(slots));
                        if (!rehearsing) {
                          EXPECT_EQ(log.size(), due) << "before use " << k;
                        }
                        p.acquire(k, 64, Access::read);
                        if (!rehearsing) {
                          EXPECT_EQ(log.size(), due);
                        }
                        p.release(k);
                      }
                    });
    for (uint32_t k = 0; k < 10; ++k) EXPECT_EQ(run.log[k].page, k);
    for (uint32_t k = 0; k + static_cast<uint32_t>(slots) < 10; ++k)
      EXPECT_EQ(run.log[k].memory, run.log[k + static_cast<uint32_t>(slots)].memory)
          << "use k has slot k mod N";
    EXPECT_EQ(run.traffic.bytes_read, 640u);
    EXPECT_EQ(run.traffic.bytes_written, 0u);
  }
}

// Forward and back: what still lies in a slot at the turn is not read again.
TEST(Pager, ReadsNothingTwiceAtTheTurn) {
  const Fixed run(3, Pager::Life::lasting, [](Pager::Pass& p, const std::vector<PageTransfer>&, bool) {
    for (const uint32_t page : {0, 1, 2, 3, 4, 4, 3, 2, 1, 0}) {
      p.acquire(page, 64, Access::read);
      p.release(page);
    }
  });
  EXPECT_EQ(run.log.size(), 7u);  // 5, and 1 and 0 again
}

// Saved activations: written on the way there, read on the way back; the last ones never leave, and nothing
// that is read no more is written.
TEST(Pager, TransientPagesLeaveOnlyToBeReadAgain) {
  const Fixed run(3, Pager::Life::transient, [](Pager::Pass& p, const std::vector<PageTransfer>&, bool) {
    for (uint32_t k = 0; k < 6; ++k) {
      p.acquire(k, 64, Access::write);
      p.release(k);
    }
    for (uint32_t k = 6; k-- > 0;) {
      p.acquire(k, 64, Access::update);
      p.release(k);
    }
  });
  EXPECT_EQ(run.traffic.bytes_written, 3 * 64u);
  EXPECT_EQ(run.traffic.bytes_read, 3 * 64u);
}

// Optimizer state: each page in and out once a pass, whatever else is changed while it stays.
TEST(Pager, AChangedPageIsWrittenOnceAStay) {
  const Fixed run(2, Pager::Life::lasting, [](Pager::Pass& p, const std::vector<PageTransfer>&, bool) {
    for (uint32_t k = 0; k < 4; ++k)
      for (int twice = 0; twice < 2; ++twice) {
        p.acquire(k, 64, Access::update);
        p.release(k);
      }
  });
  EXPECT_EQ(run.traffic.bytes_written, 4 * 64u);
  EXPECT_EQ(run.traffic.bytes_read, 4 * 64u);
}

Category category_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.category();
  }
  ADD_FAILURE() << "nothing was refused";
  return Category::diverged;
}

TEST(Pager, RefusesWhatWasNotPlanned) {
  const auto run = [](const std::function<void(Pager::Pass&)>& real) {
    return category_of([&] {
      Fixed(2, Pager::Life::lasting, [&](Pager::Pass& p, const std::vector<PageTransfer>&, bool rehearsing) {
        if (!rehearsing) return real(p);
        p.acquire(3, 60, Access::read);
        p.release(3);
      });
    });
  };
  EXPECT_EQ(run([](Pager::Pass& p) { p.acquire(4, 60, Access::read); }), Category::internal);
  EXPECT_EQ(run([](Pager::Pass& p) { p.acquire(3, 61, Access::read); }), Category::internal);
  EXPECT_EQ(run([](Pager::Pass& p) { p.acquire(3, 60, Access::update); }), Category::internal);
  EXPECT_EQ(run([](Pager::Pass& p) { p.release(3); }), Category::internal);
  EXPECT_EQ(run([](Pager::Pass&) {}), Category::internal);  // a use is missing
  EXPECT_EQ(run([](Pager::Pass& p) { p.acquire(3, 60, Access::read); }), Category::internal);  // still held
  EXPECT_EQ(run([](Pager::Pass& p) {
              p.acquire(3, 60, Access::read), p.release(3), p.acquire(3, 60, Access::read);
            }),
            Category::internal);
  // More held at once than there are slots, and a transient page that nobody wrote.
  EXPECT_EQ(category_of([] {
              Fixed(2, Pager::Life::lasting, [](Pager::Pass& p, const std::vector<PageTransfer>&, bool) {
                for (const uint32_t k : {0, 1, 2}) p.acquire(k, 64, Access::read);
                for (const uint32_t k : {0, 1, 2}) p.release(k);
              });
            }),
            Category::internal);
  EXPECT_EQ(category_of([] {
              Fixed(2, Pager::Life::transient, [](Pager::Pass& p, const std::vector<PageTransfer>&, bool) {
                p.acquire(0, 64, Access::read), p.release(0);
              });
            }),
            Category::internal);
}

TEST(Pager, SlotsAreSpansOfThePlan) {
  Pager pager("pages", 4, 5000, 3, Pager::Life::lasting);
  Trace trace("test");
  Exec e = Exec::rehearsal(1);
  Phase phase(e, trace);
  { Pager::Pass pass(pager, e); }
  ASSERT_EQ(trace.spans.size(), 1u);
  EXPECT_EQ(trace.spans[0].region, Region::staging);
  EXPECT_EQ(trace.spans[0].bytes, pager.staging_bytes());
  EXPECT_NE(trace.spans[0].died, Trace::kForever);
}

}  // namespace
}  // namespace qlora::testing
