#include "model/block_inputs.h"

namespace qlora {

BlockInputs::BlockInputs(Exec& e, Pager* pages, DType dtype, int64_t tokens, int64_t dim)
    : exec_(e), dtype_(dtype), tokens_(tokens), dim_(dim) {
  if (pages != nullptr) pass_.emplace(*pages, e);
}

Matrix BlockInputs::page(int block, Access access) {
  const size_t bytes = static_cast<size_t>(tokens_ * dim_) * size_of(dtype_);
  return {Buffer{},
          Mat(pass_->acquire(static_cast<uint32_t>(block), bytes, access), dtype_, tokens_, dim_, dim_)};
}

Matrix BlockInputs::room(int block) {
  if (pass_) return page(block, Access::write);
  return exec_.matrix(Region::activations, "x0", dtype_, tokens_, dim_);
}

void BlockInputs::leave(int block, Matrix& x0) {
  if (!pass_) return;
  x0.reset();
  pass_->release(static_cast<uint32_t>(block));
}

void BlockInputs::back(int block, Matrix& x0) {
  if (pass_) x0 = page(block, Access::read);
}

void BlockInputs::drop(int block) {
  if (pass_) pass_->release(static_cast<uint32_t>(block));
}

void BlockInputs::end() {
  if (pass_) pass_->end();
}

}  // namespace qlora
