// The engine's memory: every phase rehearsed and laid out, and what there is besides.
#include <algorithm>

#include "kernels/grad_norm/grad_norm.h"
#include "memory/file.h"
#include "memory/process.h"
#include "train/engine.h"
#include "train/largest_batch.h"
#include "train/later_bytes.h"

namespace qlora {
namespace {

// A batch's arrays in host memory (train/data/batches.h), `batches` of them.
size_t batch_bytes(const BatchMaxima& m, int64_t batches) {
  const int64_t each = m.tokens * (3 * 4 + 8) + m.loss_rows * 4 + (m.documents + 1) * 4;
  return static_cast<size_t>(each * batches);
}

}  // namespace

// Every phase but training once, on the device that only remembers.
void Engine::rehearse_all_but_training() {
  for (Trace* t : {&state_, &eval_, &norm_, &update_, &save_, &load_}) *t = Trace(t->name);
  Exec e = Exec::rehearsal(options_.threads, options_.device);
  {
    Phase phase(e, state_);
    allocate_state(e);
  }
  if (eval_decoder_) {
    const LargestBatch batch(options_.eval);
    Phase phase(e, eval_);
    eval_decoder_->evaluate(e, batch.view(), {&layout_, params_.as<float>(), nullptr});
  }
  {
    Phase phase(e, norm_);
    l2_norm(e, device_grads());
  }
  {
    Phase phase(e, update_);
    optimizer_pass(e, {});
  }
  {
    Phase phase(e, save_);
    moments_.save(e, {});
  }
  {
    Phase phase(e, load_);
    moments_.load(e, {});
  }
  // State lives on: what is freed here is only the rehearsal's handle on it.
  std::vector<Span> kept = state_.spans;
  forget_state();
  state_.spans = std::move(kept);
  for (Trace* t : {&state_, &eval_, &norm_, &update_, &save_, &load_}) t->lay_out();
}

void Engine::rehearse_training() {
  train_ = Trace(train_.name);
  Exec e = Exec::rehearsal(options_.threads, options_.device);
  // Only addresses: the adapter of the rehearsal.
  Trace adapter_trace("adapter");
  Buffer params, grads;
  {
    Phase phase(e, adapter_trace);
    params = e.allocate(Region::adapter, "adapter", count() * sizeof(float));
    grads = e.allocate(Region::gradients, "gradients", count() * sizeof(float));
  }
  const LargestBatch batch(options_.train);
  Phase phase(e, train_);
  decoder_.train(e, batch.view(), {&layout_, params.as<float>(), grads.as<float>()}, plan_.policy,
                 {0, 0, 0, options_.lora_dropout}, 1);
}

// The arenas' extents, training as rehearsed last.
void Engine::lay_out() {
  train_.lay_out();
  size_t largest = 0, live = 0, host = 0;
  for (Trace* t : {&train_, &eval_, &norm_, &update_, &save_, &load_}) {
    t->base = state_.bytes;
    t->host_base = state_.host_bytes;
    largest = std::max(largest, t->bytes);
    live = std::max(live, t->peak_live_bytes());
    host = std::max(host, t->host_bytes);
  }
  plan_.arena_bytes = state_.bytes + largest;
  plan_.live_bytes = state_.bytes + live;
  plan_.host_arena_bytes = state_.host_bytes + host;
  const Held fixed = fixed_bytes();
  plan_.device_bytes = fixed.device + plan_.arena_bytes;
  plan_.host_bytes = fixed.host + plan_.host_arena_bytes;
  // What this process has already taken is its peak at least.
  if (!options_.process_bytes) {
    size_t& resident = on_cuda() ? plan_.host_bytes : plan_.device_bytes;
    resident = std::max(resident, peak_resident_bytes());
  }
  plan_.total_bytes = plan_.device_bytes + plan_.host_bytes;
}

bool Engine::within(Held held) const {
  return held.device <= plan_.budget_bytes && held.host <= plan_.host_budget_bytes.value_or(SIZE_MAX);
}

// Everything that is no part of the run: what is resident now, less a model already read, and what comes
// later.
size_t Engine::measured_process() const {
  for (const MappedFile* f : model_->checkpoint().files()) f->forget(0, f->size());
  const ResidentSet now = resident_set();
  size_t owned = 0;
  for (const Model::Part& p : model_->parts())
    if (!p.mapped && model_->filled()) owned += p.codes + p.constants;
  return now.anonymous - std::min(now.anonymous, owned) + now.file +
         later_bytes({options_.threads, 2 * layout_.modules().size(), options_.log_lines});
}

// No CUDA device holds what is only looked up: its host reads the rows.
Place Engine::place_of(const Model::Part& p) const {
  if (on_cuda() && !p.looked_up) return Place::device;
  // Of shapes alone: matrices that are paged are planned as a file's.
  const bool as_if = pages_ && model_->checkpoint().files().empty() && p.codes > 0;
  return p.mapped || as_if ? Place::file : on_cuda() ? Place::host : Place::device;
}

size_t Engine::base_bytes(Place where) const {
  size_t bytes = 0;
  for (const Model::Part& p : model_->parts())
    if (place_of(p) == where) bytes += p.codes + p.constants;
  return bytes;
}

// Of what is on a CUDA device, what the host has made: it keeps it too.
size_t Engine::host_copy_bytes() const {
  if (!on_cuda() || model_->checkpoint().files().empty()) return 0;
  size_t bytes = 0;
  for (const Model::Part& p : model_->parts())
    if (!p.mapped && place_of(p) == Place::device) bytes += p.codes + p.constants;
  return bytes;
}

// What there is besides the arenas.
Engine::Held Engine::fixed_bytes() const {
  const size_t mapped = pages_ ? 0 : base_bytes(Place::file) + mapped_around_;
  const size_t host = plan_.process_bytes + table_bytes() + staging_bytes();
  if (!on_cuda()) return {host + base_bytes(Place::device) + mapped, 0};
  return {
      options_.context_bytes + base_bytes(Place::device) + DeviceWeights::padding(*model_) + table_bytes(),
      host + DeviceWeights::staging_bytes() + host_copy_bytes() + base_bytes(Place::host) + mapped +
          paged_bytes()};
}

size_t Engine::table_bytes() const {
  return decoder_.table_bytes() + (eval_decoder_ ? eval_decoder_->table_bytes() : 0);
}

size_t Engine::staging_bytes() const {
  return batch_bytes(options_.train, options_.accumulation) + batch_bytes(options_.eval, 1);
}

// What has left the device and lies in host memory.
size_t Engine::paged_bytes() const {
  size_t bytes = 0;
  if (!moments_.in_memory()) bytes += moments_.pager()->home_bytes();
  for (const auto& p : saved_pages_)
    if (p) bytes += p->home_bytes();
  return bytes;
}

void Engine::page_weights(bool on) {
  pages_ = on ? std::make_unique<PagedWeights>(model_) : nullptr;
  plan_.weights_paged = on;
  if (eval_decoder_) eval_decoder_->set_pages(pages_.get(), nullptr);
}

void Engine::set_policy(const std::vector<SavePolicy>& policy) {
  plan_.policy = policy;
  plan_.inputs_paged = static_cast<int>(
      std::count_if(policy.begin(), policy.end(), [](const SavePolicy& p) { return p.input == Keep::page; }));
  saved_pages_ = SavedPages::pagers(plan_.policy, page_bytes_);
  decoder_.set_pages(pages_.get(), &saved_pages_);
}

}  // namespace qlora
