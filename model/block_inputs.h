#pragma once
#include <memory>
#include <optional>
#include <span>

#include "memory/exec.h"
#include "memory/pager.h"
#include "model/block.h"

namespace qlora {

// The blocks' inputs between the passes: in memory, or, where the block's policy says so, as pages that leave
// once the block has gone forward and come back for its backward pass. The bytes, and so the results, are the
// same.
class BlockInputs {
 public:
  // One for the block at work. The other: forward, its output, asked for only when attention is through, so
  // that the input before has had that long to leave; backward, the input that comes next.
  static constexpr int kSlots = 2;
  // A pager for the inputs of `policy`, each of at most `bytes`; null where it pages none.
  static std::unique_ptr<Pager> pager(std::span<const SavePolicy> policy, size_t bytes);

  // `pages`: of pager(), for the same policy.
  BlockInputs(Exec& e, Pager* pages, std::span<const SavePolicy> policy, DType dtype, int64_t tokens,
              int64_t dim);
  // Room for the input of `block`, to be filled.
  Matrix room(int block);
  // Forward is past the block.
  void leave(int block, Matrix& x0);
  // Its backward pass comes: x0 is there again, until drop().
  void back(int block, Matrix& x0);
  void drop(int block);
  void end();

 private:
  bool paged(int block) const { return policy_[static_cast<size_t>(block)].input == Keep::page; }
  uint32_t number(int block) const;
  Matrix page(int block, Access access);
  Exec& exec_;
  std::span<const SavePolicy> policy_;
  std::optional<Pager::Pass> pass_;
  DType dtype_;
  int64_t tokens_, dim_;
};

}  // namespace qlora
