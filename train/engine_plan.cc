// The engine's memory: every phase rehearsed, what to store chosen, each byte accounted for.
#include <algorithm>
#include <array>

#include "kernels/grad_norm/grad_norm.h"
#include "memory/file.h"
#include "memory/process.h"
#include "model/block_inputs.h"
#include "model/mapped_weights.h"
#include "train/engine.h"
#include "train/largest_batch.h"
#include "train/later_bytes.h"

namespace qlora {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
std::string mib(size_t bytes) { return cat((bytes + kMiB - 1) / kMiB, " MiB"); }

// A batch's arrays in host memory (train/data/batches.h), `batches` of them.
size_t batch_bytes(const BatchMaxima& m, int64_t batches) {
  const int64_t each = m.tokens * (3 * 4 + 8) + m.loss_rows * 4 + (m.documents + 1) * 4;
  return static_cast<size_t>(each * batches);
}

size_t base_bytes(const Model& model, bool mapped) {
  size_t bytes = 0;
  for (const Model::Part& p : model.parts())
    if (p.mapped == mapped) bytes += p.codes + p.constants;
  return bytes;
}

// Everything that is no part of the run: what is resident now, less a model already read, and what comes
// later.
size_t process_bytes(const Model& model, const LaterUse& later) {
  for (const MappedFile* f : model.checkpoint().files()) f->forget(0, f->size());
  const ResidentSet now = resident_set();
  const size_t owned = model.filled() ? base_bytes(model, false) : 0;
  return now.anonymous - std::min(now.anonymous, owned) + now.file + later_bytes(later);
}

std::string layer_text(int block) { return cat("/layer ", block); }

// The choices of a policy, in the order of for_each_choice.
std::array<Keep*, kChoices> choices_of(SavePolicy& p) {
  std::array<Keep*, kChoices> out;
  size_t i = 0;
  SavePolicy::for_each_choice(p, [&](const char*, Keep& k) { out[i++] = &k; });
  return out;
}

// Seconds of each block's ops; the last entry: of those of no block.
std::vector<double> seconds_by_block(const Trace& t, const OpRates& rates, int blocks) {
  std::vector<double> out(static_cast<size_t>(blocks) + 1, 0);
  for (const OpCost& o : t.ops) out[static_cast<size_t>(o.block < 0 ? blocks : o.block)] += rates.seconds(o);
  return out;
}

// Bytes of each block's saved fields between the passes: when the logits are there.
std::vector<size_t> saved_by_block(const Trace& t, int blocks) {
  std::vector<size_t> out(static_cast<size_t>(blocks), 0);
  const auto logits =
      std::find_if(t.spans.begin(), t.spans.end(), [](const Span& s) { return s.region == Region::logits; });
  check(logits != t.spans.end(), t.name, ": no logits");
  for (const Span& s : t.spans)
    if (s.block >= 0 && s.region == Region::activations && s.live_at(logits->born))
      out[static_cast<size_t>(s.block)] += s.bytes;
  return out;
}

bool stored(const SavePolicy& policy, const std::string& field) {
  bool out = false;
  BlockSaved().for_each_field(policy, [&](const char* name, const Matrix&, Keep k) {
    if (field == name) out = k == Keep::store;
  });
  return out;
}

double total(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum;
}

}  // namespace

std::string EnginePlan::choices() const {
  std::vector<SavePolicy> by_block = policy;
  std::array<int, kChoices> recomputed{};
  int all = 0;
  for (SavePolicy& p : by_block)
    for (size_t c = 0; c < kChoices; ++c)
      if (*choices_of(p)[c] == Keep::recompute) ++recomputed[c], ++all;
  if (all == 0) return "stored";
  if (all == kChoices * static_cast<int>(policy.size())) return "recomputed";
  std::string text = "recomputed: ";
  size_t c = 0;
  SavePolicy names;
  bool first = true;
  SavePolicy::for_each_choice(names, [&](const char* name, Keep&) {
    if (recomputed[c] > 0) {
      text += cat(first ? "" : ", ", name, " in ", recomputed[c]);
      first = false;
    }
    ++c;
  });
  return text + cat(" of ", policy.size(), " layers");
}

// Every phase but training once, on the device that only remembers.
void Engine::rehearse_all_but_training() {
  for (Trace* t : {&state_, &eval_, &norm_, &update_, &save_, &load_}) *t = Trace(t->name);
  Exec e = Exec::rehearsal(options_.threads);
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
  for (Trace* t : {&state_, &eval_, &norm_, &update_, &save_, &load_}) t->lay_out();
}

void Engine::rehearse_training() {
  train_ = Trace(train_.name);
  Exec e = Exec::rehearsal(options_.threads);
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

// The arena's extent, training as rehearsed last.
void Engine::lay_out() {
  train_.lay_out();
  size_t largest = 0, live = 0;
  for (Trace* t : {&train_, &eval_, &norm_, &update_, &save_, &load_}) {
    t->base = state_.bytes;
    largest = std::max(largest, t->bytes);
    live = std::max(live, t->peak_live_bytes());
  }
  plan_.arena_bytes = state_.bytes + largest;
  plan_.live_bytes = state_.bytes + live;
  plan_.total_bytes = fixed_bytes() + plan_.arena_bytes;
  // What this process has already taken is its peak at least.
  if (!options_.process_bytes) plan_.total_bytes = std::max(plan_.total_bytes, peak_resident_bytes());
}

// What is resident besides the arena.
size_t Engine::fixed_bytes() const {
  return plan_.process_bytes + base_bytes(*model_, false) +
         (pages_ ? 0 : base_bytes(*model_, true) + mapped_around_) + table_bytes() + staging_bytes();
}

size_t Engine::table_bytes() const {
  return decoder_.table_bytes() + (eval_decoder_ ? eval_decoder_->table_bytes() : 0);
}

size_t Engine::staging_bytes() const {
  return batch_bytes(options_.train, options_.accumulation) + batch_bytes(options_.eval, 1);
}

void Engine::page(bool weights, bool inputs) {
  pages_ = weights ? std::make_unique<PagedWeights>(model_) : nullptr;
  input_pages_.reset();
  if (inputs) {
    const auto bytes =
        static_cast<size_t>(options_.train.tokens * model_->desc().dim) * size_of(options_.numerics.stream);
    input_pages_ = std::make_unique<Pager>("inputs", static_cast<uint32_t>(model_->block_count()), bytes,
                                           BlockInputs::kSlots, Pager::Life::transient);
  }
  plan_.weights_paged = weights;
  plan_.inputs_paged = inputs;
  decoder_.set_pages(pages_.get(), input_pages_.get());
  if (eval_decoder_) eval_decoder_->set_pages(pages_.get(), nullptr);
}

bool Engine::attempt(const std::vector<SavePolicy>& policy) {
  plan_.policy = policy;
  rehearse_training();
  // Packing takes longer than rehearsing: not where even the live bytes are too many.
  if (fixed_bytes() + state_.bytes + train_.peak_live_bytes() > plan_.budget_bytes) return false;
  lay_out();
  return plan_.total_bytes <= plan_.budget_bytes;
}

// What each choice of each block costs when it is computed again, and what it frees: block by block, in the
// order of for_each_choice. From rehearsals in which every block has the same policy.
std::vector<Decision> Engine::decisions() {
  const int blocks = model_->block_count();
  const auto rehearsed = [&](const SavePolicy& p) {
    plan_.policy.assign(static_cast<size_t>(blocks), p);
    rehearse_training();
    return std::pair(seconds_by_block(train_, options_.rates, blocks), saved_by_block(train_, blocks));
  };
  const auto [stored_seconds, stored_bytes] = rehearsed(SavePolicy::all(Keep::store));
  std::vector<Decision> out(static_cast<size_t>(blocks) * kChoices);
  for (size_t c = 0; c < kChoices; ++c) {
    SavePolicy one;
    *choices_of(one)[c] = Keep::recompute;
    const auto [seconds, bytes] = rehearsed(one);
    for (size_t b = 0; b < static_cast<size_t>(blocks); ++b)
      out[b * kChoices + c] = {seconds[b] - stored_seconds[b], stored_bytes[b] - bytes[b]};
  }
  return out;
}

// What costs most time leaves memory last: blocks' inputs go out and come back once a microbatch, frozen
// weights are many more bytes and read twice.
void Engine::choose_policy() {
  plan_.process_bytes =
      options_.process_bytes
          ? *options_.process_bytes
          : process_bytes(*model_, {options_.threads, 2 * layout_.modules().size(), options_.log_lines});
  plan_.budget_bytes =
      options_.memory_budget ? *options_.memory_budget : available_bytes() + resident_set().anonymous;
  mapped_around_ = bytes_mapped_around(*model_);
  // Shapes alone have no file that pages could be read from.
  const bool in_files = base_bytes(*model_, true) > 0 && !model_->checkpoint().files().empty();
  for (const bool weights : {false, true})
    for (const bool inputs : {false, true}) {
      if (weights ? !in_files : in_files && options_.always_page_weights) continue;
      if (!inputs && options_.always_page_inputs) continue;
      page(weights, inputs);
      choose_saved();
      if (plan_.fits) return;
    }
  if (!plan_.fits && options_.must_fit) {
    const size_t missing = plan_.total_bytes - plan_.budget_bytes;
    fail(Category::memory, "this run needs ", mib(plan_.total_bytes), " of memory and may take ",
         mib(plan_.budget_bytes), ": ", mib(missing), " are missing; ", remedy());
  }
}

// What is stored from the forward to the backward pass, weights resident or not.
void Engine::choose_saved() {
  const auto blocks = static_cast<size_t>(model_->block_count());
  const auto uniform = [&](Keep k) { return std::vector<SavePolicy>(blocks, SavePolicy::all(k)); };
  // A paged optimizer's moments leave memory before anything is computed again.
  const bool paged = is_paged(options_.optimizer);
  const auto attempt_uniform = [&](Keep k) {
    for (const bool in_memory : {true, false}) {
      if (in_memory ? paged && options_.paging.always : !paged) continue;
      moments_.keep_in_memory(in_memory);
      rehearse_all_but_training();
      if (attempt(uniform(k))) return true;
    }
    return false;
  };

  plan_.fits = attempt_uniform(Keep::store);
  lay_out();
  const size_t stored_arena = plan_.arena_bytes;
  const double stored_seconds = total(seconds_by_block(train_, options_.rates, model_->block_count()));
  if (!options_.pinned.empty()) {
    plan_.fits = attempt(options_.pinned);
  } else if (options_.checkpointing == Checkpointing::all) {
    plan_.fits = attempt_uniform(Keep::recompute);
  } else if (options_.checkpointing == Checkpointing::automatic && !plan_.fits) {
    const auto policy_of = [&](const std::vector<bool>& again) {
      std::vector<SavePolicy> p = uniform(Keep::store);
      for (size_t i = 0; i < again.size(); ++i)
        if (again[i]) *choices_of(p[i / kChoices])[i % kChoices] = Keep::recompute;
      return p;
    };
    std::vector<bool> taken =
        choose(decisions(), [&](const std::vector<bool>& again) { return attempt(policy_of(again)); });
    if (taken.empty()) taken.assign(blocks * kChoices, true);
    plan_.fits = attempt(policy_of(taken));
  }
  lay_out();
  plan_.flops_per_microbatch = train_.flops();
  plan_.seconds = total(seconds_by_block(train_, options_.rates, model_->block_count()));
  plan_.extra_seconds = plan_.seconds - stored_seconds;
  plan_.saved_bytes = stored_arena - std::min(stored_arena, plan_.arena_bytes);
}

void Engine::describe_arena() {
  const auto add = [&](std::string name, size_t bytes, std::string why) {
    plan_.regions.push_back({std::move(name), Place::device, bytes, std::move(why)});
  };
  for (const Span& s : state_.spans)
    add(name_of(s.region), s.bytes, s.region == Region::moments ? moments_.describe() : "fp32");
  if (!moments_.in_memory()) add(name_of(Region::moments), 0, moments_.describe());
  const Trace* largest = &train_;
  for (const Trace* t : {&eval_, &norm_, &update_, &save_, &load_})
    if (t->bytes > largest->bytes) largest = t;
  size_t live = state_.bytes;
  for (const LiveBytes& l : live_at_peak(*largest)) {
    const bool named = std::string(name_of(l.region)) != l.name;
    const bool saved = l.region == Region::activations && l.block >= 0;
    add(cat(name_of(l.region), named ? cat("/", l.name) : "", saved ? layer_text(l.block) : ""), l.bytes,
        saved && stored(plan_.policy[static_cast<size_t>(l.block)], l.name)
            ? "stored from the forward to the backward pass"
            : cat("at the peak of ", largest->name));
    live += l.bytes;
  }
  add("gaps", plan_.arena_bytes - live, "between spans that share the arena");
}

void Engine::describe() {
  const auto add = [&](std::string name, Place where, size_t bytes, std::string why) {
    if (bytes > 0) plan_.regions.push_back({std::move(name), where, bytes, std::move(why)});
  };
  add("process", Place::host, plan_.process_bytes, "program, libraries, tokenizer, data");
  for (const bool constants : {false, true})
    for (int b = -1; b < model_->block_count(); ++b)
      for (const bool mapped : {false, true}) {
        size_t bytes = 0;
        for (const Model::Part& p : model_->parts())
          if (p.block == b && p.mapped == mapped && !(pages_ && mapped))
            bytes += constants ? p.constants : p.codes;
        add(cat(constants ? "constants" : "base", b < 0 ? "/embeddings" : layer_text(b)),
            mapped ? Place::file : Place::device, bytes,
            constants ? "scales, norms, biases"
            : b < 0   ? "as stored"
                      : model_->storage());
      }
  add("base/around", Place::file, pages_ ? 0 : mapped_around_, "what the system maps of the files beside it");
  describe_arena();
  add("rope tables", Place::host, table_bytes(), "fp32, for the longest document");
  add("staging", Place::host, staging_bytes(), "the batches of a step");
  size_t sum = 0;
  for (const PlanRegion& r : plan_.regions) sum += r.bytes;
  check(sum <= plan_.total_bytes, "a plan of ", plan_.total_bytes, " bytes lists ", sum);
  // What reading and tokenizing took at its peak and gave back, where that is above the run's own.
  add("loading", Place::host, plan_.total_bytes - sum, "taken before the first step, and given back");
}

}  // namespace qlora
