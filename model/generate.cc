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
                     const Limits& limits, const RunDevice& on)
    : on_(on),
      decoder_(std::move(model), numerics, {limits.longest, limits.slots, limits.longest, 0}),
      limits_(limits),
      adapter_(adapter) {
  check(limits.slots > 0 && limits.longest > 0, "a generator without slots or length");
  limits_.few |= on.on_card();
  plan();
}

std::unique_ptr<Generator> Generator::fitting(const std::shared_ptr<const Model>& model, Numerics numerics,
                                              const AdapterView& adapter, Limits limits,
                                              const RunDevice& on) {
  for (;; limits.slots = (limits.slots + 1) / 2) {
    auto generator = std::make_unique<Generator>(model, numerics, adapter, limits, on);
    const bool fits = !on.on_card() || generator->bytes() <= cuda::device_info(on.device.index).free_bytes;
    if (fits || limits.slots == 1) return generator;
  }
}

int64_t Generator::most_rows() const {
  return std::max<int64_t>(std::min(kPrefillRows, limits_.longest), limits_.slots);
}

size_t Generator::cache_bytes() const {
  size_t bytes = 0;
  for (const Span& s : state_.spans)
    if (s.region == Region::activations) bytes += s.bytes;
  return bytes;
}

// What lives on: caches, and what host and device hand each other.
void Generator::allocate_state(Exec& e) {
  adapter_.allocate(e);
  tokens_ =
      e.allocate(Region::data, "tokens", static_cast<size_t>(2 * most_rows()) * sizeof(int32_t), Place::host);
  logits_ = e.allocate(Region::logits, "logits", static_cast<size_t>(limits_.slots * vocab()) * sizeof(float),
                       Place::host);
  if (e.on_cuda()) card_logits_ = e.matrix(Region::logits, "logits", DType::f32, limits_.slots, vocab());
  for (int b = 0; b < decoder_.model().block_count(); ++b)
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

void Generator::forget_state() {
  adapter_.forget();
  tokens_.reset();
  logits_.reset();
  card_logits_.reset();
  cache_memory_.clear();
  caches_.clear();
}

std::span<const KvCache> Generator::caches_of(int slot) {
  slot_caches_.clear();
  for (size_t i = static_cast<size_t>(slot); i < caches_.size(); i += static_cast<size_t>(limits_.slots))
    slot_caches_.push_back(caches_[i]);
  return slot_caches_;
}

void Generator::plan() {
  {
    Exec e = Exec::rehearsal(on_.threads, on_.device);
    // State lives on: what is freed here, whatever happens, is only the rehearsal's handle on it.
    const struct Forgets {
      Generator& of;
      ~Forgets() { of.forget_state(); }
    } forgets{*this};
    {
      Phase phase(e, state_);
      allocate_state(e);
    }
    const auto rehearse = [&](Trace& trace, int64_t rows, int docs, int32_t past,
                              std::span<const KvCache> caches, bool step) {
      const std::vector<int32_t> ids(static_cast<size_t>(rows)), pasts(static_cast<size_t>(docs), past);
      std::vector<int32_t> offsets(static_cast<size_t>(docs) + 1);
      for (int i = 0; i <= docs; ++i) offsets[static_cast<size_t>(i)] = static_cast<int32_t>(rows * i / docs);
      Phase phase(e, trace);
      decoder_.infer(e, {ids, ids, offsets, pasts, step}, adapter_.view(), caches,
                     Mat(logits_.data(), DType::f32, docs, vocab(), vocab()));
    };
    const int64_t rows = std::min(kPrefillRows, limits_.longest);
    rehearse(prefill_trace_, rows, 1, static_cast<int32_t>(limits_.longest - rows), caches_of(0), false);
    rehearse(decode_trace_, limits_.slots, limits_.slots, static_cast<int32_t>(limits_.longest - 1), caches_,
             limits_.few);
  }
  memory_.plan(state_, {&prefill_trace_, &decode_trace_});
}

void Generator::reserve() {
  if (exec_) return;
  exec_ = memory_.reserve(on_);
  if (on_.on_card()) decoder_.set_device(*on_.weights, exec_->stream());
  Phase phase(*exec_, state_);
  allocate_state(*exec_);
}

// One pass over the rows that ids() and positions() have; logits go to the rows of slots from first_slot on.
void Generator::pass(Trace& trace, std::span<const int32_t> docs, std::span<const int32_t> past,
                     std::span<const KvCache> caches, int first_slot, bool step) {
  const auto rows = static_cast<size_t>(docs.back());
  const Mat host(logits_.as<float>() + first_slot * vocab(), DType::f32, static_cast<int64_t>(past.size()),
                 vocab(), vocab());
  // On a card always from its first row on, which is aligned: what multiplies may hang on that.
  const Mat logits = exec_->on_cuda() ? card_logits_.view().row_range(0, host.rows) : host;
  Phase phase(*exec_, trace);
  decoder_.infer(*exec_, {{ids(), rows}, {positions(), rows}, docs, past, step}, adapter_.view(), caches,
                 logits);
  if (!exec_->on_cuda()) return;
  exec_->stream().copy(host.data, logits.data, static_cast<size_t>(logits.bytes()));
  exec_->stream().synchronize();
}

void Generator::prefill(Slot& slot, int index) {
  slot.logits = {logits_.as<float>() + index * vocab(), static_cast<size_t>(vocab())};
  const std::span<const KvCache> caches = caches_of(index);
  while (slot.past < slot.ids.size()) {
    const size_t n = std::min<size_t>(kPrefillRows, slot.ids.size() - slot.past);
    for (size_t i = 0; i < n; ++i) {
      ids()[i] = slot.ids[slot.past + i];
      positions()[i] = static_cast<int32_t>(slot.past + i);
    }
    const int32_t docs[2] = {0, static_cast<int32_t>(n)}, past = static_cast<int32_t>(slot.past);
    pass(prefill_trace_, docs, {&past, 1}, caches, index, false);
    slot.past += n;
  }
}

// One more row for every busy slot.
void Generator::decode(std::span<Slot> slots) {
  std::vector<int32_t> docs{0}, past;
  for (const Slot& s : slots) {
    int32_t rows = docs.back();
    if (s.busy) {
      ids()[rows] = s.ids.back();
      positions()[rows] = static_cast<int32_t>(s.past);
      ++rows;
    }
    docs.push_back(rows);
    past.push_back(s.busy ? static_cast<int32_t>(s.past) : 0);
  }
  pass(decode_trace_, docs, past, caches_, 0, limits_.few);
  for (Slot& s : slots)
    if (s.busy) ++s.past;
}

std::vector<std::vector<int32_t>> Generator::run(std::span<const Request> requests, const Sampling& sampling,
                                                 std::span<const int32_t> eos, uint64_t seed,
                                                 const OnToken& on_token) {
  reserve();
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
