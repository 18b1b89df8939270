// What is stored from the forward to the backward pass, what computed again, and what leaves memory.
#include <algorithm>

#include "kernels/gemm/gemm_choice.h"
#include "memory/page_backend.h"
#include "memory/process.h"
#include "model/mapped_weights.h"
#include "train/engine.h"

namespace qlora {
namespace {

// A page's cost where nobody knows how fast it travels: above that of any computation.
constexpr double kDearSecondsAByte = 1;
// Of a CPU, whose products give the same bits for any number of rows.
constexpr int64_t kWideLogitsBytes = 2 * Decoder::kLogitsBytes;

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

// What may be computed again, in the order of for_each_choice.
constexpr Keep SavePolicy::*kFields[kChoices] = {&SavePolicy::qkv, &SavePolicy::attention,
                                                 &SavePolicy::middle, &SavePolicy::mlp};

double total(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum;
}

}  // namespace

std::vector<SavePolicy> Engine::uniform(Keep keep) const {
  SavePolicy p = SavePolicy::all(keep);
  if (options_.always_page_inputs) p.input = Keep::page;
  return std::vector<SavePolicy>(static_cast<size_t>(model_->block_count()), p);
}

bool Engine::attempt(const std::vector<SavePolicy>& policy) {
  set_policy(policy);
  rehearse_training();
  // Packing takes longer than rehearsing: not where even the live bytes are too many.
  Held held = fixed_bytes();
  held.device += state_.bytes + train_.peak_live_bytes();
  if (!within(held)) return false;
  lay_out();
  return within({plan_.device_bytes, plan_.host_bytes});
}

// Moments that may leave memory do before anything else is given up.
bool Engine::attempt_uniform(Keep keep) {
  const bool may = moments_.may_leave();
  for (const bool in_memory : {true, false}) {
    if (in_memory ? may && (options_.paging.always || options_.smallest) : !may) continue;
    moments_.keep_in_memory(in_memory);
    rehearse_all_but_training();
    if (attempt(uniform(keep))) return true;
  }
  return false;
}

// From rehearsals in which every block has the same policy.
Engine::Costs Engine::costs() {
  const int blocks = model_->block_count();
  const auto rehearsed = [&](const SavePolicy& p) {
    set_policy(std::vector<SavePolicy>(static_cast<size_t>(blocks), p));
    rehearse_training();
    return std::pair(seconds_by_block(train_, options_.rates, blocks), saved_by_block(train_, blocks));
  };
  const SavePolicy all = SavePolicy::all(Keep::store);
  Costs out;
  std::tie(out.seconds, out.bytes) = rehearsed(all);
  for (size_t f = 0; f < kChoices; ++f) {
    SavePolicy one = all;
    one.*kFields[f] = Keep::recompute;
    std::tie(out.again[f], out.freed[f]) = rehearsed(one);
    for (size_t b = 0; b < static_cast<size_t>(blocks); ++b) {
      out.again[f][b] -= out.seconds[b];
      out.freed[f][b] = out.bytes[b] - out.freed[f][b];
    }
  }
  return out;
}

// The fields that may rather leave memory than be computed again, the dearest to compute for its bytes first:
// as many as leave, beside the input, in the time of a block's forward pass (a third of both).
std::vector<size_t> Engine::that_hide(const Costs& costs) const {
  std::vector<size_t> order = {0, 1, 2, 3};
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return costs.again[a][0] * static_cast<double>(page_bytes_[1 + b]) >
           costs.again[b][0] * static_cast<double>(page_bytes_[1 + a]);
  });
  const double room =
      *std::min_element(costs.seconds.begin(), costs.seconds.end() - 1) / 3 * options_.rates.transfer;
  auto bytes = static_cast<double>(page_bytes_[0]);
  size_t n = 0;
  while (n < order.size() && (bytes += static_cast<double>(page_bytes_[1 + order[n]])) <= room) ++n;
  order.resize(n);
  return order;
}

// What may be given up, of a plan that has given up nothing of it: inputs that leave, as many as there is
// room for where they go, then fields that are computed again, block by block, or leave too, those of
// `paged`.
std::vector<Engine::Choice> Engine::choices(std::span<const size_t> paged) const {
  const auto blocks = static_cast<size_t>(model_->block_count());
  size_t room = SIZE_MAX;
  if (const auto budget = plan_.host_budget_bytes)
    room = *budget - std::min(*budget, fixed_bytes().host + train_.peak_live_bytes(Place::host));
  const auto leaves = [&](size_t group) {
    constexpr size_t kAlign = PageBackend::kPageAlign;
    const size_t bytes = (page_bytes_[group] + kAlign - 1) / kAlign * kAlign;
    if (bytes > room) return false;
    room -= bytes;
    return true;
  };
  std::vector<Choice> out;
  for (size_t b = 0; b < blocks && !options_.always_page_inputs && leaves(0); ++b)
    out.push_back({b, &SavePolicy::input, Keep::page});
  for (size_t b = 0; b < blocks && options_.checkpointing == Checkpointing::automatic; ++b)
    for (size_t f = 0; f < kChoices; ++f) {
      const bool page = std::find(paged.begin(), paged.end(), f) != paged.end() && leaves(1 + f);
      out.push_back({b, kFields[f], page ? Keep::page : Keep::recompute});
    }
  return out;
}

// What each choice costs, and what it frees.
std::vector<Decision> Engine::decisions(const Costs& costs, const std::vector<Choice>& choices) const {
  std::vector<Decision> out;
  for (const Choice& c : choices) {
    if (c.field == &SavePolicy::input) {
      // Out beside one block's computation, back beside another's.
      const auto bytes = static_cast<double>(page_bytes_[0]);
      const double transfer = options_.rates.transfer;
      out.push_back({transfer > 0 ? std::max(0., 2 * bytes / transfer - costs.seconds[c.block])
                                  : bytes * kDearSecondsAByte,
                     page_bytes_[0]});
      continue;
    }
    const auto f =
        static_cast<size_t>(std::find(std::begin(kFields), std::end(kFields), c.field) - std::begin(kFields));
    out.push_back({c.to == Keep::page ? 0 : costs.again[f][c.block], costs.freed[f][c.block]});
  }
  return out;
}

bool Engine::choose_among(const std::vector<SavePolicy>& whole, const Costs& costs,
                          const std::vector<Choice>& may) {
  const auto policy_of = [&](const std::vector<bool>& taken) {
    std::vector<SavePolicy> p = whole;
    for (size_t i = 0; i < may.size(); ++i)
      if (taken[i]) p[may[i].block].*may[i].field = may[i].to;
    return p;
  };
  const std::vector<bool> all(may.size(), true);
  std::vector<bool> taken;
  if (!options_.smallest)
    taken = choose(decisions(costs, may), [&](const std::vector<bool>& t) { return attempt(policy_of(t)); });
  return attempt(policy_of(taken.empty() ? all : taken));
}

// As little given up as does, the cheapest first; as many fields paged as hide, fewer where their slots have
// no room.
void Engine::choose_least() {
  const std::vector<SavePolicy> whole =
      uniform(options_.checkpointing == Checkpointing::all ? Keep::recompute : Keep::store);
  if (options_.smallest) {
    moments_.keep_in_memory(!moments_.may_leave());
    rehearse_all_but_training();
  }
  plan_.fits = attempt(whole);
  if (plan_.fits) return;
  Costs known;
  std::vector<size_t> paged;
  if (!options_.smallest) {
    known = costs();
    if (options_.checkpointing == Checkpointing::automatic) paged = that_hide(known);
    set_policy(whole);
  }
  for (;; paged.pop_back()) {
    plan_.fits = choose_among(whole, known, choices(paged));
    if (plan_.fits || paged.empty()) return;
  }
}

// Wide logits are worth 2 % of a step, less than anything that is given up for them; who asks for everything
// to be computed again asks for memory.
void Engine::choose_logits() {
  const auto set = [&](int64_t bytes) {
    decoder_.set_logits_bytes(bytes);
    if (eval_decoder_) eval_decoder_->set_logits_bytes(bytes);
    rehearse_all_but_training();
  };
  if (on_cuda() || options_.smallest || options_.checkpointing == Checkpointing::all) return;
  set(kWideLogitsBytes);
  const bool fits = options_.pinned.empty() ? attempt_uniform(Keep::store) : attempt(options_.pinned);
  const bool moments_gave_way = !moments_.in_memory() && !options_.paging.always;
  if (!fits || moments_gave_way) set(Decoder::kLogitsBytes);
}

// Weights resident or not.
void Engine::choose_saved() {
  // Laid out if it fits; nobody looks at one that does not.
  if (options_.smallest && options_.pinned.empty()) return choose_least();
  const int blocks = model_->block_count();
  plan_.fits = attempt_uniform(Keep::store);
  lay_out();
  const size_t stored_arena = plan_.arena_bytes;
  const double stored_seconds = total(seconds_by_block(train_, options_.rates, blocks));
  if (!options_.pinned.empty()) {
    plan_.fits = attempt(options_.pinned);
  } else {
    if (options_.checkpointing == Checkpointing::all) plan_.fits = attempt_uniform(Keep::recompute);
    if (!plan_.fits) choose_least();
  }
  lay_out();
  plan_.flops_per_microbatch = train_.flops();
  plan_.seconds = total(seconds_by_block(train_, options_.rates, blocks));
  plan_.extra_seconds = plan_.seconds - stored_seconds;
  plan_.saved_bytes = stored_arena - std::min(stored_arena, plan_.arena_bytes);
}

// Nothing is given up for the panels: nobody has measured what decoding beside the products gains.
void Engine::choose_decode() {
  const auto fits = [&](bool ahead) {
    decoder_.set_decode_ahead(ahead);
    if (eval_decoder_) eval_decoder_->set_decode_ahead(ahead);
    rehearse_all_but_training();
    return attempt(plan_.policy);
  };
  if (!on_cuda() || options_.smallest || !decodes_ahead()) return;
  plan_.decodes_ahead = fits(true) && decoder_.decodes_ahead();
  if (!plan_.decodes_ahead) check(fits(false), "a plan that fitted does not");
}

void Engine::choose_policy() {
  plan_.process_bytes = options_.process_bytes ? *options_.process_bytes : measured_process();
  plan_.budget_bytes =
      options_.memory_budget ? *options_.memory_budget : available_bytes() + resident_set().anonymous;
  if (on_cuda()) plan_.host_budget_bytes = options_.host_budget;
  mapped_around_ = bytes_mapped_around(*model_);
  // Frozen weights are many bytes and read twice: what else may leave memory does before. A CUDA device has
  // its weights resident; what is quantized when it is read has no file; shapes alone are planned as if they
  // had one.
  const bool in_files = !on_cuda() && (base_bytes(Place::file) > 0 || model_->checkpoint().files().empty());
  for (const bool weights : {false, true}) {
    if (weights ? !in_files : in_files && options_.always_page_weights) continue;
    page_weights(weights);
    choose_logits();
    choose_saved();
    if (plan_.fits) return choose_decode();
  }
  if (options_.must_fit) refuse();
}

}  // namespace qlora
