#include "train/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/common/rows.h"
#include "kernels/cuda/body.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm_choice.h"
#include "kernels/grad_norm/grad_norm.h"
#include "memory/page_backends.h"
#include "memory/page_cuda.h"
#include "memory/process.h"
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
  if (!e.on_cuda()) return;
  host_params_ = e.allocate(Region::adapter, "adapter", bytes, Place::host);
  slots_.allocate(e, larger_of(options_.train, options_.eval));
}

void Engine::forget_state() {
  for (Buffer* b : {&params_, &grads_, &host_params_}) b->reset();
  moments_.forget();
  slots_.forget();
}

void Engine::optimizer_pass(Exec& e, const AdamWHyper& h) {
  if (options_.optimizer == OptimizerKind::sgd)
    sgd(e, h.lr, h.weight_decay, h.grad_scale, device_params(), device_grads());
  else
    moments_.update(e, h, device_params(), device_grads());
}

void Engine::reserve() {
  if (on_cuda()) return reserve_on_card();
  connect_pages();  // first: it measures the disk with memory that the arena takes afterwards
  arena_ = Arena(plan_.arena_bytes);
  arena_.touch();
  exec_ = std::make_unique<Exec>(Device{DeviceKind::cpu, 0}, options_.threads, arena_.data());
  Phase phase(*exec_, state_);
  allocate_state(*exec_);
  moments_.connect({&update_, &save_, &load_});
  targets_.reserve(static_cast<size_t>(std::max(options_.train.loss_rows, options_.eval.loss_rows)));
}

void Engine::reserve_on_card() {
  const int card = options_.device.index;
  cuda::cuda_body(card);  // what is wrong with its variable is told before anything is taken
  const auto reserved = [&](cuda::MemoryKind kind, size_t bytes, const char* what, const char* remedy) {
    cuda::Memory m = cuda::Memory::allocate(kind, card, bytes);
    if (!m) fail(Category::memory, what, " of ", bytes, " bytes, as planned, ", remedy);
    return m;
  };
  card_arena_ = reserved(cuda::MemoryKind::device, plan_.arena_bytes, "the card grants no arena",
                         "for its free memory is in pieces or in use; lower --memory");
  pinned_arena_ =
      reserved(cuda::MemoryKind::pinned, plan_.host_arena_bytes, "the system grants no pinned memory",
               "for locked memory is limited; raise the limit (ulimit -l)");
  exec_ = std::make_unique<Exec>(options_.device, options_.threads, card_arena_.data(), pinned_arena_.data());
  cuda::Stream& stream = exec_->stream();
  if (options_.numerics.compute == DType::bf16 && cuda_gemm() != CudaGemm::own) cuda::start_matmul(card);
  card_weights_ = std::make_shared<const DeviceWeights>(*model_, stream);
  decoder_.set_device(*card_weights_, stream);
  if (eval_decoder_) eval_decoder_->set_device(*card_weights_, stream);
  stream.fill(card_arena_.data(), 0, state_.bytes);
  Phase phase(*exec_, state_);
  allocate_state(*exec_);
  connect_pages();
  moments_.connect({&update_, &save_, &load_}, &stream);
}

void Engine::connect_pages() {
  if (pages_) {
    pages_->connect({&train_, &eval_}, options_.pages_through);
    // What reading the model has left resident of its files; from here on they are read past the page cache.
    for (const MappedFile* f : model_->checkpoint().files()) f->forget(0, f->size());
  }
  for (const auto& p : saved_pages_) {
    if (!p) continue;
    std::unique_ptr<PageBackend> pages =
        on_cuda() ? pinned_pages({&exec_->stream(), p->pages(), p->slot_bytes(), p->slots()}, p->home_bytes())
                  : file_pages(PageFiles::temporary(options_.paging.folder, p->pages(), p->slot_bytes()),
                               p->slots());
    if (options_.pages_through) pages = options_.pages_through(std::move(pages), *p);
    p->connect(std::move(pages), {&train_});
  }
}

size_t Engine::peak_bytes() const { return on_cuda() ? plan_.device_bytes : peak_resident_bytes(); }

std::span<const float> Engine::params() {
  if (!on_cuda()) return device_params();
  exec_->stream().copy(host_params_.data(), params_.data(), count() * sizeof(float));
  exec_->stream().synchronize();
  return {host_params_.as<float>(), count()};
}

std::span<const float> Engine::grads() {
  if (!on_cuda()) return device_grads();
  grads_copy_.resize(count());
  exec_->stream().copy(grads_copy_.data(), grads_.data(), count() * sizeof(float));
  exec_->stream().synchronize();
  return grads_copy_;
}

void Engine::set_params(const std::function<void(std::span<float>)>& fill) {
  if (!on_cuda()) return fill(device_params());
  fill({host_params_.as<float>(), count()});
  exec_->stream().copy(params_.data(), host_params_.data(), count() * sizeof(float));
  exec_->stream().synchronize();
}

void Engine::zero_grads() {
  if (on_cuda()) return exec_->stream().fill(grads_.data(), 0, count() * sizeof(float));
  parallel_ranges(*exec_, static_cast<int64_t>(count()), int64_t{1} << 16, [&](int64_t begin, int64_t end) {
    std::memset(grads_.as<float>() + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  });
}

TokenBatch Engine::view(const Batch& b) { return on_cuda() ? slots_.put(b) : token_batch(b, targets_); }

// The pass over the batch last viewed has been put on the device, or is done with this loss.
void Engine::passed(const LossSum& sum) {
  if (on_cuda())
    slots_.sent();
  else
    sum_ += sum;
}

LossSum Engine::losses() {
  if (on_cuda()) sum_ += slots_.take();
  return std::exchange(sum_, {});
}

LossSum Engine::train(const Batch& batch, const DropoutKey& dropout, float grad_scale) {
  start(batch, dropout, grad_scale);
  return losses();
}

void Engine::start(const Batch& batch, const DropoutKey& dropout, float grad_scale) {
  Phase phase(*exec_, train_);
  const auto traffic = [&] {
    PageTraffic saved;
    for (const auto& p : saved_pages_)
      if (p) saved += p->traffic();
    return std::pair(pages_ ? pages_->traffic() : PageTraffic{}, saved);
  };
  const auto [weights, saved] = traffic();
  const auto began = std::chrono::steady_clock::now();
  passed(decoder_.train(*exec_, view(batch), {&layout_, params_.as<float>(), grads_.as<float>()},
                        plan_.policy, dropout, grad_scale));
  const auto [weights_now, saved_now] = traffic();
  paging_cost_.weights += weights_now - weights;
  paging_cost_.saved += saved_now - saved;
  paging_cost_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

LossSum Engine::evaluate(const Batch& batch) {
  check(eval_decoder_.has_value(), "evaluation was not planned");
  const LossSum started = losses();
  Phase phase(*exec_, eval_);
  passed(eval_decoder_->evaluate(*exec_, view(batch), {&layout_, params_.as<float>(), nullptr}));
  const LossSum sum = losses();
  sum_ = started;
  return sum;
}

double Engine::grad_norm() {
  Phase phase(*exec_, norm_);
  return l2_norm(*exec_, device_grads());
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
