#include "memory/pager.h"

#include <algorithm>
#include <chrono>

namespace qlora {
namespace {

constexpr size_t kAlign = PageBackend::kPageAlign;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Pager::Pager(std::string name, uint32_t pages, size_t slot_bytes, int slots, Life life)
    : name_(std::move(name)),
      slot_bytes_(aligned(slot_bytes)),
      slots_(slots),
      life_(life),
      held_bytes_(pages, 0),
      slot_(static_cast<size_t>(slots)) {
  check(slots >= 1, name_, ": ", slots, " slots");
}

Pager::~Pager() = default;

// Spans of the arena are aligned to less.
size_t Pager::home_bytes() const { return held_bytes_.size() * slot_bytes_; }

size_t Pager::staging_bytes() const { return static_cast<size_t>(slots_) * slot_bytes_ + kAlign; }

// ---- before the first step ----

void Pager::connect(std::unique_ptr<PageBackend> backend, std::initializer_list<const Trace*> traces) {
  backend_ = std::move(backend);
  plans_.clear();
  for (const Trace* t : traces) {
    const auto uses = t->page_uses.find(name_);
    if (uses == t->page_uses.end()) continue;
    plans_[t] = planned(uses->second);
    for (const PageUse& u : uses->second) held_bytes_[u.page] = std::max(held_bytes_[u.page], u.bytes);
  }
}

// Goes through the uses as the pass will, and gives each its slot.
Pager::Plan Pager::planned(const std::vector<PageUse>& uses) const {
  struct State {
    int64_t page = -1, last = -1, released = -1;
  };
  std::vector<State> state(slot_.size());
  Plan plan;
  plan.first.assign(slot_.size(), -1);
  for (size_t i = 0; i < uses.size(); ++i) {
    const PageUse& u = uses[i];
    const auto free = [&](const State& s) { return s.released < u.acquired; };
    auto at = std::find_if(state.begin(), state.end(), [&](const State& s) { return s.page == u.page; });
    const bool there = at != state.end();
    if (!there)
      at = std::min_element(state.begin(), state.end(),
                            [](const State& a, const State& b) { return a.released < b.released; });
    check(free(*at), name_, ": page ", u.page, " has no slot: ", slots_, " are held");
    Use planned{u.page, u.access, u.bytes, static_cast<int>(at - state.begin())};
    planned.fetch = !there && u.access != Access::write;
    if (!there)
      (at->last < 0 ? plan.first[static_cast<size_t>(planned.slot)]
                    : plan.uses[static_cast<size_t>(at->last)].follower) = static_cast<int64_t>(i);
    *at = {u.page, static_cast<int64_t>(i), u.released};
    plan.uses.push_back(planned);
  }
  plan_stores(plan);
  return plan;
}

// From the end: a page that was written to goes back, once for each stay in a slot, if anybody reads it
// afterwards.
void Pager::plan_stores(Plan& plan) const {
  std::vector<bool> wanted(held_bytes_.size(), life_ == Life::lasting);
  std::vector<int64_t> first_of_stay(plan.uses.size()), current(slot_.size(), -1);
  for (size_t i = 0; i < plan.uses.size(); ++i) {
    const Use& u = plan.uses[i];
    int64_t& first = current[static_cast<size_t>(u.slot)];
    if (first < 0 || plan.uses[static_cast<size_t>(first)].page != u.page) first = static_cast<int64_t>(i);
    first_of_stay[i] = first;
  }
  std::vector<bool> stored(plan.uses.size(), false);  // by the stay's first use
  for (size_t i = plan.uses.size(); i-- > 0;) {
    Use& u = plan.uses[i];
    const size_t first = static_cast<size_t>(first_of_stay[i]);
    if (u.access != Access::read && wanted[u.page] && !stored[first]) u.store = stored[first] = true;
    if (first == i) wanted[u.page] = u.fetch;
  }
  if (life_ == Life::lasting) return;
  for (size_t page = 0; page < wanted.size(); ++page)
    check(!wanted[page], name_, ": page ", page, " is read before the pass wrote it");
}

PageTraffic Pager::planned(const Trace& trace) const {
  PageTraffic sum;
  const auto uses = trace.page_uses.find(name_);
  if (uses == trace.page_uses.end()) return sum;
  for (const Use& u : planned(uses->second).uses) {
    if (u.fetch) sum.bytes_read += u.bytes;
    if (u.store) sum.bytes_written += u.bytes;
  }
  return sum;
}

// ---- the pass ----

void Pager::begin(Exec& e, std::byte* data) {
  const auto plan = plans_.find(&e.trace());
  check(plan != plans_.end(), name_, ": a pass that was not planned, in ", e.trace().name);
  plan_ = &plan->second;
  next_ = 0;
  for (size_t s = 0; s < slot_.size(); ++s) {
    slot_[s] = {data + s * slot_bytes_, Way::none, 0, -1, -1};
    backend_->computed(static_cast<int>(s));  // what had the memory before may be under way
    if (plan_->first[s] >= 0) expect(static_cast<int>(s), plan_->first[s]);
  }
  advance();
}

void Pager::expect(int slot, int64_t use) {
  if (plan_->uses[static_cast<size_t>(use)].fetch) slot_[static_cast<size_t>(slot)].incoming = use;
}

void Pager::start(int slot, bool write, uint32_t page) {
  Slot& s = slot_[static_cast<size_t>(slot)];
  const size_t bytes = held_bytes_[page];
  const double began = now();
  s.way = write ? Way::out : Way::in;
  s.page = page;
  (write ? traffic_.bytes_written : traffic_.bytes_read) += bytes;
  backend_->start(slot, {write, page, s.data, bytes});
  traffic_.stall_seconds += now() - began;
}

void Pager::await(int slot) {
  const double began = now();
  slot_[static_cast<size_t>(slot)].way = Way::none;
  backend_->wait(slot);
  traffic_.stall_seconds += now() - began;
}

// Starts the fetch that the slot expects, unless its memory or the page is still on its way out.
bool Pager::try_fetch(int slot) {
  Slot& s = slot_[static_cast<size_t>(slot)];
  const uint32_t page = plan_->uses[static_cast<size_t>(s.incoming)].page;
  for (size_t o = 0; o < slot_.size(); ++o)
    if (slot_[o].way == Way::out && (static_cast<int>(o) == slot || slot_[o].page == page) &&
        !backend_->ready(static_cast<int>(o)))
      return false;
  s.incoming = -1;
  start(slot, false, page);
  return true;
}

void Pager::advance() {
  for (size_t s = 0; s < slot_.size(); ++s)
    if (slot_[s].incoming >= 0) try_fetch(static_cast<int>(s));
}

std::byte* Pager::acquire(uint32_t page, size_t bytes, Access access) {
  check(next_ < plan_->uses.size(), name_, ": page ", page, " after the last planned use");
  const Use& u = plan_->uses[next_];
  check(u.page == page && u.access == access && bytes <= u.bytes, name_, ": use ", next_,
        " was planned for page ", u.page, " (", u.bytes, " bytes), not for page ", page, " (", bytes, ")");
  Slot& s = slot_[static_cast<size_t>(u.slot)];
  check(s.held < 0, name_, ": page ", page, " is held twice");
  if (s.incoming >= 0 && !try_fetch(u.slot)) {
    for (size_t o = 0; o < slot_.size(); ++o)
      if (slot_[o].way == Way::out && (static_cast<int>(o) == u.slot || slot_[o].page == page))
        await(static_cast<int>(o));
    try_fetch(u.slot);
  }
  // Reading beside a transfer out is harmless.
  if (s.way == Way::in || (s.way == Way::out && access != Access::read)) await(u.slot);
  if (access == Access::write)
    held_bytes_[page] = bytes;
  else
    check(bytes <= held_bytes_[page], name_, ": page ", page, " has ", held_bytes_[page], " bytes, not ",
          bytes);
  s.held = static_cast<int64_t>(next_++);
  advance();
  return s.data;
}

void Pager::release(uint32_t page) {
  const auto slot = std::find_if(slot_.begin(), slot_.end(), [&](const Slot& s) {
    return s.held >= 0 && plan_->uses[static_cast<size_t>(s.held)].page == page;
  });
  check(slot != slot_.end(), name_, ": page ", page, " is released but not held");
  const int index = static_cast<int>(slot - slot_.begin());
  const Use& u = plan_->uses[static_cast<size_t>(slot->held)];
  slot->held = -1;
  backend_->computed(index);
  if (u.store) start(index, true, page);
  if (u.follower >= 0) expect(index, u.follower);
  advance();
}

void Pager::end() {
  check(next_ == plan_->uses.size(), name_, ": ended after ", next_, " of ", plan_->uses.size(), " uses");
  for (size_t s = 0; s < slot_.size(); ++s) {
    check(slot_[s].held < 0, name_, ": ended while a page is held");
    await(static_cast<int>(s));
  }
}

// ---- rehearsal ----

void Pager::record(Exec& e, uint32_t page, size_t bytes, Access access) {
  check(page < held_bytes_.size() && bytes <= slot_bytes_, name_, ": page ", page, " of ", bytes, " bytes");
  std::vector<PageUse>& uses = e.trace().page_uses[name_];
  for (const PageUse& u : uses)
    check(u.page != page || u.released != Trace::kForever, name_, ": page ", page, " is held twice");
  uses.push_back({page, access, bytes, e.trace().now++, Trace::kForever});
}

void Pager::record_release(Exec& e, uint32_t page) {
  for (PageUse& u : e.trace().page_uses[name_]) {
    if (u.page != page || u.released != Trace::kForever) continue;
    u.released = e.trace().now++;
    return;
  }
  check(false, name_, ": page ", page, " is released but not held");
}

Pager::Pass::Pass(Pager& pager, Exec& exec) : pager_(pager), exec_(exec) {
  slots_ = exec.allocate(Region::staging, pager.name_.c_str(), pager.staging_bytes());
  if (exec.rehearsing()) {
    const bool fresh = exec.trace().page_uses.try_emplace(pager.name_).second;
    check(fresh, exec.trace().name, ": a second pass of ", pager.name_);
    return;
  }
  check(pager.connected(), pager.name_, ": a pass before the pages have a place");
  const size_t over = reinterpret_cast<uintptr_t>(slots_.data()) % kAlign;
  try {
    pager.begin(exec, slots_.as<std::byte>() + (over == 0 ? 0 : kAlign - over));
  } catch (...) {
    pager.backend_->abandon();
    throw;
  }
}

Pager::Pass::~Pass() {
  if (!ended_ && !exec_.rehearsing()) pager_.backend_->abandon();
}

std::byte* Pager::Pass::acquire(uint32_t page, size_t bytes, Access access) {
  if (!exec_.rehearsing()) return pager_.acquire(page, bytes, access);
  pager_.record(exec_, page, bytes, access);
  return slots_.as<std::byte>();
}

void Pager::Pass::release(uint32_t page) {
  if (exec_.rehearsing())
    pager_.record_release(exec_, page);
  else
    pager_.release(page);
}

void Pager::Pass::end() {
  if (exec_.rehearsing())
    for (const PageUse& u : exec_.trace().page_uses[pager_.name_])
      check(u.released != Trace::kForever, pager_.name_, ": ended while a page is held");
  else
    pager_.end();
  ended_ = true;
}

}  // namespace qlora
