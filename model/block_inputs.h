#pragma once
#include <optional>

#include "memory/exec.h"
#include "memory/pager.h"

namespace qlora {

// The blocks' inputs between the passes: in memory, or as pages that leave once their block has gone forward
// and come back for its backward pass. The bytes, and so the results, are the same.
class BlockInputs {
 public:
  // Pages for inputs of at most `bytes`: one is read and the next one written while others travel.
  static constexpr int kSlots = 4;

  // `pages` null: in memory.
  BlockInputs(Exec& e, Pager* pages, DType dtype, int64_t tokens, int64_t dim);
  // Room for the input of `block`, to be filled.
  Matrix room(int block);
  // Forward is past the block.
  void leave(int block, Matrix& x0);
  // Its backward pass comes: x0 is there again, until drop().
  void back(int block, Matrix& x0);
  void drop(int block);
  void end();

 private:
  Matrix page(int block, Access access);
  Exec& exec_;
  std::optional<Pager::Pass> pass_;
  DType dtype_;
  int64_t tokens_, dim_;
};

}  // namespace qlora
