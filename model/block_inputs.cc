#include "model/block_inputs.h"

#include <algorithm>

namespace qlora {
namespace {

int64_t paged_among(std::span<const SavePolicy> policy) {
  return std::count_if(policy.begin(), policy.end(),
                       [](const SavePolicy& p) { return p.input == Keep::page; });
}

}  // namespace

std::unique_ptr<Pager> BlockInputs::pager(std::span<const SavePolicy> policy, size_t bytes) {
  const auto pages = static_cast<uint32_t>(paged_among(policy));
  if (pages == 0) return nullptr;
  return std::make_unique<Pager>("inputs", pages, bytes, kSlots, Pager::Life::transient);
}

BlockInputs::BlockInputs(Exec& e, Pager* pages, std::span<const SavePolicy> policy, DType dtype,
                         int64_t tokens, int64_t dim)
    : exec_(e), policy_(policy), dtype_(dtype), tokens_(tokens), dim_(dim) {
  if (pages != nullptr) pass_.emplace(*pages, e);
}

// Pages are numbered in the order of their blocks.
uint32_t BlockInputs::number(int block) const {
  return static_cast<uint32_t>(paged_among(policy_.first(static_cast<size_t>(block))));
}

Matrix BlockInputs::page(int block, Access access) {
  const size_t bytes = static_cast<size_t>(tokens_ * dim_) * size_of(dtype_);
  return {Buffer{}, Mat(pass_->acquire(number(block), bytes, access), dtype_, tokens_, dim_, dim_)};
}

Matrix BlockInputs::room(int block) {
  if (paged(block)) return page(block, Access::write);
  return exec_.matrix(Region::activations, "x0", dtype_, tokens_, dim_);
}

void BlockInputs::leave(int block, Matrix& x0) {
  if (!paged(block)) return;
  x0.reset();
  pass_->release(number(block));
}

void BlockInputs::back(int block, Matrix& x0) {
  if (paged(block)) x0 = page(block, Access::read);
}

void BlockInputs::drop(int block) {
  if (paged(block)) pass_->release(number(block));
}

void BlockInputs::end() {
  if (pass_) pass_->end();
}

}  // namespace qlora
