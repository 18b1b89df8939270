#include "model/generate.h"

#include <algorithm>

#include "memory/random.h"

namespace qlora {
namespace {

constexpr int64_t kPrefillRows = 512;

// Uniform in [0, 1): a function of seed, request and step.
double unit_of(uint64_t seed, uint64_t request, uint64_t step) {
  return unit_interval(random_bits(random_bits(seed, request), step));
}

}  // namespace

struct Generator::Slot {
  size_t request = 0;
  bool busy = false;
  std::vector<int32_t> ids;  // prompt and answer
  size_t prompt = 0, past = 0, limit = 0;
  std::span<float> logits;
};

Generator::Generator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
                     const Limits& limits, int threads)
    : decoder_(std::move(model), numerics, {limits.longest, limits.slots, limits.longest, 0}),
      adapter_(adapter),
      limits_(limits),
      threads_(threads) {
  check(limits.slots > 0 && limits.longest > 0, "a generator without slots or length");
  plan();
}

void Generator::make_caches(Exec& e) {
  const int blocks = decoder_.model().block_count();
  cache_memory_.clear();
  caches_.clear();
  for (int b = 0; b < blocks; ++b)
    for (int s = 0; s < limits_.slots; ++s) {
      const int64_t kv = decoder_.model().desc().blocks[static_cast<size_t>(b)].kv_dim();
      const auto cache = [&](const char* name) -> Mat {
        return cache_memory_.emplace_back(
            e.matrix(Region::activations, name, decoder_.numerics().compute, limits_.longest, kv));
      };
      const Mat k = cache("cache_k");
      caches_.push_back({k, cache("cache_v")});
    }
}

std::span<const KvCache> Generator::caches_of(int slot) {
  slot_caches_.clear();
  for (size_t i = static_cast<size_t>(slot); i < caches_.size(); i += static_cast<size_t>(limits_.slots))
    slot_caches_.push_back(caches_[i]);
  return slot_caches_;
}

void Generator::plan() {
  const int64_t vocab = decoder_.model().desc().vocab;
  logits_.resize(static_cast<size_t>(limits_.slots * vocab));
  {
    Exec e = Exec::rehearsal(threads_);
    {
      Phase phase(e, caches_trace_);
      make_caches(e);
    }
    const auto rehearse = [&](Trace& trace, int64_t rows, int docs, int32_t past,
                              std::span<const KvCache> caches, bool step) {
      const std::vector<int32_t> ids(static_cast<size_t>(rows)), pasts(static_cast<size_t>(docs), past);
      std::vector<int32_t> offsets(static_cast<size_t>(docs) + 1);
      for (int i = 0; i <= docs; ++i) offsets[static_cast<size_t>(i)] = static_cast<int32_t>(rows * i / docs);
      Phase phase(e, trace);
      decoder_.infer(e, {ids, ids, offsets, pasts, step}, adapter_, caches, Mat(logits_.data(), docs, vocab));
    };
    const int64_t rows = std::min(kPrefillRows, limits_.longest);
    rehearse(prefill_trace_, rows, 1, static_cast<int32_t>(limits_.longest - rows), caches_of(0), false);
    rehearse(decode_trace_, limits_.slots, limits_.slots, static_cast<int32_t>(limits_.longest - 1), caches_,
             limits_.few);
    cache_memory_.clear();
  }
  caches_trace_.lay_out();
  for (Trace* t : {&prefill_trace_, &decode_trace_}) {
    t->lay_out();
    t->base = caches_trace_.bytes;
  }
  arena_ = Arena(caches_trace_.bytes + std::max(prefill_trace_.bytes, decode_trace_.bytes));
  exec_ = std::make_unique<Exec>(Device{DeviceKind::cpu, 0}, threads_, arena_.data());
  Phase phase(*exec_, caches_trace_);
  make_caches(*exec_);
}

void Generator::prefill(Slot& slot, int index) {
  const int64_t vocab = decoder_.model().desc().vocab;
  slot.logits = std::span(logits_).subspan(static_cast<size_t>(index * vocab), static_cast<size_t>(vocab));
  const std::span<const KvCache> caches = caches_of(index);
  while (slot.past < slot.ids.size()) {
    const size_t n = std::min<size_t>(kPrefillRows, slot.ids.size() - slot.past);
    std::vector<int32_t> positions(n);
    for (size_t i = 0; i < n; ++i) positions[i] = static_cast<int32_t>(slot.past + i);
    const int32_t docs[2] = {0, static_cast<int32_t>(n)}, past = static_cast<int32_t>(slot.past);
    Phase phase(*exec_, prefill_trace_);
    decoder_.infer(*exec_, {std::span(slot.ids).subspan(slot.past, n), positions, docs, {&past, 1}}, adapter_,
                   caches, Mat(slot.logits.data(), 1, vocab));
    slot.past += n;
  }
}

// One more row for every busy slot.
void Generator::decode(std::span<Slot> slots) {
  std::vector<int32_t> ids, positions, docs{0}, past;
  for (const Slot& s : slots) {
    if (s.busy) {
      ids.push_back(s.ids.back());
      positions.push_back(static_cast<int32_t>(s.past));
    }
    docs.push_back(static_cast<int32_t>(ids.size()));
    past.push_back(s.busy ? static_cast<int32_t>(s.past) : 0);
  }
  Phase phase(*exec_, decode_trace_);
  decoder_.infer(*exec_, {ids, positions, docs, past, limits_.few}, adapter_, caches_,
                 Mat(logits_.data(), limits_.slots, decoder_.model().desc().vocab));
  for (Slot& s : slots)
    if (s.busy) ++s.past;
}

std::vector<std::vector<int32_t>> Generator::run(std::span<const Request> requests, const Sampling& sampling,
                                                 std::span<const int32_t> eos, uint64_t seed,
                                                 const OnToken& on_token) {
  std::vector<std::vector<int32_t>> answers(requests.size());
  std::vector<Slot> slots(static_cast<size_t>(limits_.slots));
  size_t next = 0;
  // Draws a slot's next token from its logits; false when the request is done.
  const auto draw = [&](Slot& s) {
    const size_t made = s.ids.size() - s.prompt;
    if (s.ids.size() >= s.limit) return false;
    const int32_t id = sample(sampling, s.logits, s.ids, unit_of(seed, s.request, made));
    if (std::find(eos.begin(), eos.end(), id) != eos.end()) return false;
    s.ids.push_back(id);
    answers[s.request].push_back(id);
    return (!on_token || on_token(s.request, id)) && s.ids.size() < s.limit;
  };
  const auto refill = [&](Slot& s, int index) {
    while (!s.busy && next < requests.size()) {
      const Request& r = requests[next];
      if (r.prompt.empty() || static_cast<int64_t>(r.prompt.size()) > limits_.longest)
        fail(Category::usage, "prompt ", next + 1, ": ", r.prompt.size(), " tokens; this run takes 1 to ",
             limits_.longest);
      s = {};
      s.request = next++;
      s.ids = r.prompt;
      s.prompt = r.prompt.size();
      s.limit = static_cast<size_t>(std::min(limits_.longest, static_cast<int64_t>(s.prompt) + r.max_new));
      prefill(s, index);
      s.busy = draw(s);
    }
  };
  while (true) {
    for (size_t i = 0; i < slots.size(); ++i) refill(slots[i], static_cast<int>(i));
    if (std::none_of(slots.begin(), slots.end(), [](const Slot& s) { return s.busy; })) return answers;
    decode(slots);
    for (Slot& s : slots)
      if (s.busy) s.busy = draw(s);
  }
}

}  // namespace qlora
