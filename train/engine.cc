#include "train/engine.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "kernels/grad_norm/grad_norm.h"
#include "memory/process.h"
#include "train/largest_batch.h"

namespace qlora {
namespace {

std::string mib(size_t bytes) { return cat((bytes + (size_t{1} << 20) - 1) >> 20, " MiB"); }

size_t base_bytes(const Model& model, bool mapped) {
  size_t bytes = 0;
  for (const Model::Part& p : model.parts())
    if (p.mapped == mapped) bytes += p.codes + p.constants;
  return bytes;
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, AdapterLayout layout, const EngineOptions& options)
    : model_(std::move(model)),
      layout_(std::move(layout)),
      options_(options),
      decoder_(model_, options.numerics, limits_of(options.train)),
      moments_(layout_, options.optimizer, options.paging) {
  if (options.eval.tokens > 0) eval_decoder_.emplace(model_, options.numerics, limits_of(options.eval));
  choose_policy();
  describe();
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

// Every phase once on the device that only remembers.
void Engine::rehearse() {
  for (Trace* t : {&state_, &train_, &eval_, &norm_, &update_, &save_, &load_}) *t = Trace(t->name);
  Exec e = Exec::rehearsal(options_.threads);
  {
    Phase phase(e, state_);
    allocate_state(e);
  }
  const AdapterView adapter{&layout_, params_.as<float>(), grads_.as<float>()};
  {
    const LargestBatch batch(options_.train);
    Phase phase(e, train_);
    decoder_.train(e, batch.view(), adapter, policy_, {0, 0, 0, options_.lora_dropout}, 1);
  }
  if (eval_decoder_) {
    const LargestBatch batch(options_.eval);
    Phase phase(e, eval_);
    eval_decoder_->evaluate(e, batch.view(), {&layout_, params_.as<float>(), nullptr});
  }
  {
    Phase phase(e, norm_);
    l2_norm(e, grads());
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
  for (Buffer* b : {&params_, &grads_}) b->reset();
  moments_.forget();
  state_.spans = std::move(kept);
  state_.lay_out();
  size_t largest = 0;
  for (Trace* t : {&train_, &eval_, &norm_, &update_, &save_, &load_}) {
    t->lay_out();
    t->base = state_.bytes;
    largest = std::max(largest, t->bytes);
  }
  plan_.arena_bytes = state_.bytes + largest;
}

// What the process holds besides the arena: itself, libraries, data and owned weights (measured), and mapped
// weights.
size_t Engine::fixed_bytes() const {
  const ResidentSet now = resident_set();
  return now.anonymous + std::max(now.file, size_t{16} << 20) + base_bytes(*model_, true);
}

void Engine::choose_policy() {
  const size_t fixed = fixed_bytes();
  plan_.budget_bytes =
      options_.memory_budget ? *options_.memory_budget : available_bytes() + resident_set().anonymous;
  const SavePolicy store, recompute = SavePolicy::all(Keep::recompute);
  const auto fits = [&](const SavePolicy& p, bool moments_in_memory) {
    moments_.keep_in_memory(moments_in_memory);
    policy_.assign(static_cast<size_t>(model_->block_count()), p);
    rehearse();
    plan_.total_bytes = fixed + plan_.arena_bytes;
    return plan_.total_bytes <= plan_.budget_bytes;
  };
  const bool paged = is_paged(options_.optimizer);
  const auto attempt = [&](const SavePolicy& p) {
    return (!(paged && options_.paging.always) && fits(p, true)) || (paged && fits(p, false));
  };
  if (options_.checkpointing != Checkpointing::all && attempt(store)) return;
  if (options_.checkpointing == Checkpointing::none) refuse();
  plan_.recompute = true;
  if (!attempt(recompute)) refuse();
}

void Engine::refuse() const {
  // Activations grow with the tokens of a batch: the share of them that the budget leaves room for, in steps
  // of 64.
  const size_t missing = plan_.total_bytes - plan_.budget_bytes;
  const size_t floor = plan_.total_bytes - train_.bytes;
  std::string remedy = "a budget of --memory " + mib(plan_.total_bytes);
  if (plan_.budget_bytes > floor) {
    const double share = static_cast<double>(plan_.budget_bytes - floor) / static_cast<double>(train_.bytes);
    const int64_t tokens =
        static_cast<int64_t>(share * 0.9 * static_cast<double>(options_.train.tokens)) / 64 * 64;
    if (tokens >= 64)
      remedy += cat(" fits, or batches of ", tokens, " tokens instead of ", options_.train.tokens,
                    " (--per-device-train-batch-size, --max-seq-length)");
  } else {
    remedy += " fits";
  }
  if (options_.checkpointing == Checkpointing::none) remedy += ", or --gradient-checkpointing auto";
  fail(Category::memory, "this run needs ", mib(plan_.total_bytes), " of memory and may take ",
       mib(plan_.budget_bytes), ": ", mib(missing), " are missing; ", remedy);
}

void Engine::describe() {
  plan_.flops_per_microbatch = train_.flops();
  std::map<Region, size_t> by_region;
  for (const Span& s : state_.spans) by_region[s.region] += s.bytes;
  const ResidentSet now = resident_set();
  plan_.rows.push_back({"process",
                        now.anonymous + now.file - std::min(now.anonymous, base_bytes(*model_, false)),
                        "program, libraries, tokenizer, data"});
  plan_.rows.push_back({"base", base_bytes(*model_, false) + base_bytes(*model_, true), model_->storage()});
  plan_.rows.push_back({"adapter", by_region[Region::adapter], "fp32"});
  plan_.rows.push_back({"gradients", by_region[Region::gradients], "fp32"});
  plan_.rows.push_back({"moments", by_region[Region::moments], moments_.describe()});
  plan_.rows.push_back({"activations and workspace", plan_.arena_bytes - state_.bytes,
                        cat(plan_.recompute ? "recomputed" : "stored", ", batches of up to ",
                            options_.train.tokens, " tokens")});
}

void Engine::reserve() {
  arena_ = Arena(plan_.arena_bytes);
  arena_.touch();
  exec_ = std::make_unique<Exec>(Device{DeviceKind::cpu, 0}, options_.threads, arena_.data());
  Phase phase(*exec_, state_);
  allocate_state(*exec_);
  moments_.connect({&update_, &save_, &load_});
  targets_.reserve(static_cast<size_t>(std::max(options_.train.loss_rows, options_.eval.loss_rows)));
}

void Engine::zero_grads() { std::memset(grads_.data(), 0, count() * sizeof(float)); }

TokenBatch Engine::view(const Batch& b) { return token_batch(b, targets_); }

LossSum Engine::train(const Batch& batch, const DropoutKey& dropout, float grad_scale) {
  Phase phase(*exec_, train_);
  return decoder_.train(*exec_, view(batch), {&layout_, params_.as<float>(), grads_.as<float>()}, policy_,
                        dropout, grad_scale);
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
  optimizer_pass(*exec_, hyper);
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
