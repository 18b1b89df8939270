#pragma once
#include <array>
#include <memory>
#include <optional>
#include <span>

#include "memory/exec.h"
#include "memory/pager.h"
#include "model/block.h"

namespace qlora {

// What the forward pass leaves for the backward pass, as far as a policy pages it: a group of a block's
// fields is a page, which leaves once the block has gone forward and comes back for its backward pass. The
// bytes, and so the results, are the same.
class SavedPages {
 public:
  // One for the block at work. The other: forward, what the block before has left and is on its way out;
  // backward, what comes next.
  static constexpr int kSlots = 2;
  // A pager a group, its pages of at most `bytes`; null where `policy` pages nothing of it.
  using Pagers = std::array<std::unique_ptr<Pager>, kSavedGroups.size()>;
  static Pagers pagers(std::span<const SavePolicy> policy,
                       const std::array<size_t, kSavedGroups.size()>& bytes);

  // `pagers`: made for the same policy.
  SavedPages(Exec& e, const Pagers& pagers, std::span<const SavePolicy> policy, DType stream, int64_t tokens,
             int64_t dim);
  // Room for the input of `block`, to be filled: asked for when the block before has its attention, so that
  // the input which had the slot has that long to leave.
  Matrix input(int block);
  // Forward comes to the block: room for its other fields.
  void begin(int block, const BlockContext& c, BlockSaved& s);
  // Forward is past it.
  void leave(int block, BlockSaved& s);
  // Its backward pass comes: all is there again, until drop().
  void back(int block, const BlockContext& c, BlockSaved& s);
  void drop(int block);
  void end();

 private:
  bool paged(int block, size_t group) const {
    return policy_[static_cast<size_t>(block)].*kSavedGroups[group] == Keep::page;
  }
  uint32_t number(int block, size_t group) const;
  void take(int block, const BlockContext& c, BlockSaved& s, Access access);
  Exec& exec_;
  std::span<const SavePolicy> policy_;
  std::array<std::optional<Pager::Pass>, kSavedGroups.size()> pass_;
  DType stream_;
  int64_t tokens_, dim_;
};

}  // namespace qlora
