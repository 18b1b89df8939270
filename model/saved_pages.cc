#include "model/saved_pages.h"

#include <algorithm>

namespace qlora {
namespace {

constexpr size_t kInput = 0;  // among kSavedGroups
constexpr std::array<const char*, kSavedGroups.size()> kNames = {"inputs", "qkv", "attention", "middle",
                                                                 "mlp"};

int64_t paged_among(std::span<const SavePolicy> policy, size_t group) {
  return std::count_if(policy.begin(), policy.end(),
                       [&](const SavePolicy& p) { return p.*kSavedGroups[group] == Keep::page; });
}

}  // namespace

SavedPages::Pagers SavedPages::pagers(std::span<const SavePolicy> policy,
                                      const std::array<size_t, kSavedGroups.size()>& bytes) {
  Pagers out;
  for (size_t g = 0; g < out.size(); ++g)
    if (const auto pages = static_cast<uint32_t>(paged_among(policy, g)); pages > 0)
      out[g] = std::make_unique<Pager>(kNames[g], pages, bytes[g], kSlots, Pager::Life::transient);
  return out;
}

SavedPages::SavedPages(Exec& e, const Pagers& pagers, std::span<const SavePolicy> policy, DType stream,
                       int64_t tokens, int64_t dim)
    : exec_(e), policy_(policy), stream_(stream), tokens_(tokens), dim_(dim) {
  for (size_t g = 0; g < pass_.size(); ++g) {
    check((pagers[g] != nullptr) == (paged_among(policy, g) > 0), kNames[g], ": pages of another policy");
    if (pagers[g]) pass_[g].emplace(*pagers[g], e);
  }
}

// Pages are numbered in the order of their blocks.
uint32_t SavedPages::number(int block, size_t group) const {
  return static_cast<uint32_t>(paged_among(policy_.first(static_cast<size_t>(block)), group));
}

Matrix SavedPages::input(int block) {
  if (!paged(block, kInput)) return exec_.matrix(Region::activations, "x0", stream_, tokens_, dim_);
  const size_t bytes = static_cast<size_t>(tokens_ * dim_) * size_of(stream_);
  return {Buffer{}, Mat(pass_[kInput]->acquire(number(block, kInput), bytes, Access::write), stream_, tokens_,
                        dim_, dim_)};
}

void SavedPages::take(int block, const BlockContext& c, BlockSaved& s, Access access) {
  for (size_t g = kInput + 1; g < pass_.size(); ++g)
    if (paged(block, g)) s.room[g] = pass_[g]->acquire(number(block, g), group_bytes(c, tokens_, g), access);
}

void SavedPages::begin(int block, const BlockContext& c, BlockSaved& s) { take(block, c, s, Access::write); }

void SavedPages::leave(int block, BlockSaved& s) {
  s.room = {};
  if (paged(block, kInput)) s.x0.reset();
  drop(block);
}

void SavedPages::back(int block, const BlockContext& c, BlockSaved& s) {
  if (paged(block, kInput)) {
    const size_t bytes = static_cast<size_t>(tokens_ * dim_) * size_of(stream_);
    s.x0 = {Buffer{}, Mat(pass_[kInput]->acquire(number(block, kInput), bytes, Access::read), stream_,
                          tokens_, dim_, dim_)};
  }
  take(block, c, s, Access::read);
}

void SavedPages::drop(int block) {
  for (size_t g = 0; g < pass_.size(); ++g)
    if (paged(block, g)) pass_[g]->release(number(block, g));
}

void SavedPages::end() {
  for (auto& pass : pass_)
    if (pass) pass->end();
}

}  // namespace qlora
