#include "train/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/grad_norm/grad_norm.h"
#include "memory/page_backends.h"
#include "train/largest_batch.h"

namespace qlora {
namespace {

// Beside a CUDA device pages are pinned memory: any optimizer's moments may go there.
Moments::Paging paging_of(const EngineOptions& options) {
  Moments::Paging paging = options.paging;
  paging.pinned = options.device.kind == DeviceKind::cuda;
  return paging;
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, AdapterLayout layout, const EngineOptions& options)
    : model_(std::move(model)),
      layout_(std::move(layout)),
      options_(options),
      decoder_(model_, options.numerics, limits_of(options.train)),
      moments_(layout_, options.optimizer, paging_of(options)) {
  if (options.eval.tokens > 0) eval_decoder_.emplace(model_, options.numerics, limits_of(options.eval));
  page_bytes_ = decoder_.page_bytes(layout_);
  choose_policy();
  if (plan_.fits || !options_.smallest) describe();
}

void Engine::allocate_state(Exec& e) {
  const size_t bytes = count() * sizeof(float);
  params_ = e.allocate(Region::adapter, "adapter", bytes);
  grads_ = e.allocate(Region::gradients, "gradients", bytes);
  moments_.allocate(e);
}

void Engine::optimizer_pass(Exec& e, const AdamWHyper& h) {
  if (options_.optimizer == OptimizerKind::sgd)
    sgd(e, h.lr, h.weight_decay, h.grad_scale, params(), grads());
  else
    moments_.update(e, h, params(), grads());
}

void Engine::reserve() {
  connect_pages();  // first: it measures the disk with memory that the arena takes afterwards
  arena_ = Arena(plan_.arena_bytes);
  arena_.touch();
  exec_ = std::make_unique<Exec>(Device{DeviceKind::cpu, 0}, options_.threads, arena_.data());
  Phase phase(*exec_, state_);
  allocate_state(*exec_);
  moments_.connect({&update_, &save_, &load_});
  targets_.reserve(static_cast<size_t>(std::max(options_.train.loss_rows, options_.eval.loss_rows)));
}

void Engine::connect_pages() {
  if (pages_) {
    pages_->connect({&train_, &eval_}, options_.pages_through);
    // What reading the model has left resident of its files; from here on they are read past the page cache.
    for (const MappedFile* f : model_->checkpoint().files()) f->forget(0, f->size());
  }
  for (const auto& p : saved_pages_) {
    if (!p) continue;
    std::unique_ptr<PageBackend> file =
        file_pages(PageFiles::temporary(options_.paging.folder, p->pages(), p->slot_bytes()), p->slots());
    if (options_.pages_through) file = options_.pages_through(std::move(file), *p);
    p->connect(std::move(file), {&train_});
  }
}

void Engine::zero_grads() { std::memset(grads_.data(), 0, count() * sizeof(float)); }

TokenBatch Engine::view(const Batch& b) { return token_batch(b, targets_); }

LossSum Engine::train(const Batch& batch, const DropoutKey& dropout, float grad_scale) {
  Phase phase(*exec_, train_);
  const auto traffic = [&] {
    PageTraffic saved;
    for (const auto& p : saved_pages_)
      if (p) saved += p->traffic();
    return std::pair(pages_ ? pages_->traffic() : PageTraffic{}, saved);
  };
  const auto [weights, saved] = traffic();
  const auto began = std::chrono::steady_clock::now();
  const LossSum sum = decoder_.train(*exec_, view(batch), {&layout_, params_.as<float>(), grads_.as<float>()},
                                     plan_.policy, dropout, grad_scale);
  const auto [weights_now, saved_now] = traffic();
  paging_cost_.weights += weights_now - weights;
  paging_cost_.saved += saved_now - saved;
  paging_cost_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return sum;
}

LossSum Engine::evaluate(const Batch& batch) {
  check(eval_decoder_.has_value(), "evaluation was not planned");
  Phase phase(*exec_, eval_);
  return eval_decoder_->evaluate(*exec_, view(batch), {&layout_, params_.as<float>(), nullptr});
}

double Engine::grad_norm() {
  Phase phase(*exec_, norm_);
  return l2_norm(*exec_, grads());
}

void Engine::update(const AdamWHyper& hyper) {
  Phase phase(*exec_, update_);
  const Pager* const pages = moments_.pager();
  const PageTraffic former = pages != nullptr ? pages->traffic() : PageTraffic{};
  optimizer_pass(*exec_, hyper);
  if (pages != nullptr) paging_cost_.moments += pages->traffic() - former;
}

void Engine::save_moments(const std::function<void(MomentPart, std::span<const std::byte>)>& write) {
  Phase phase(*exec_, save_);
  moments_.save(*exec_, write);
}

void Engine::load_moments(const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill) {
  Phase phase(*exec_, load_);
  moments_.load(*exec_, fill);
}

}  // namespace qlora
