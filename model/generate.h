#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/decoder.h"
#include "model/run_device.h"

namespace qlora {

// How the next token is drawn, in transformers' order: repetition penalty, temperature, top-k, top-p, min-p.
struct Sampling {
  bool greedy = true;
  float temperature = 1;
  int top_k = 0;  // 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
};

// One token from logits [vocab] (changed in place). `seen`: the ids of prompt and answer, for the penalty.
// `unit`: uniform in [0, 1).
int32_t sample(const Sampling& s, std::span<float> logits, std::span<const int32_t> seen, double unit);

// Completes prompts, several at a time: a request's text does not depend on what runs beside it.
class Generator {
 public:
  struct Limits {
    int slots = 1;        // requests under way at once
    int64_t longest = 0;  // prompt and answer together
    // Steps by products of few rows (gemm_few.h): what pays for up to four slots on a CPU. On a card all are.
    bool few = false;
  };
  // Plans; the first run() reserves. `adapter` must outlive it.
  Generator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
            const Limits& limits, const RunDevice& on);

  // With fewer slots where so many do not fit into what is free on a card (one is tried in any case): no
  // answer hangs on it.
  static std::unique_ptr<Generator> fitting(const std::shared_ptr<const Model>& model, Numerics numerics,
                                            const AdapterView& adapter, Limits limits, const RunDevice& on);

  struct Request {
    std::vector<int32_t> prompt;  // at least one token
    int64_t max_new = 0;          // cut where prompt + answer would pass limits.longest
  };
  // on_token(request, id) as tokens come, in each request's order; false ends that request. eos ids end it
  // too and are not handed out. Request i draws from a stream of its own, of (seed, i). Returns each
  // request's new ids. On a card the host waits once a token, for the logits it draws from (twice where it
  // looks the embedding up). Category::memory when there is no room for what was planned.
  using OnToken = std::function<bool(size_t, int32_t)>;
  std::vector<std::vector<int32_t>> run(std::span<const Request> requests, const Sampling& sampling,
                                        std::span<const int32_t> eos, uint64_t seed,
                                        const OnToken& on_token = {});

  // What it takes while it runs, of the device that computes, besides the model's weights; and beside a card,
  // pinned.
  size_t bytes() const { return memory_.bytes() + decoder_.table_bytes(); }
  size_t host_bytes() const { return memory_.host_bytes(); }
  int slots() const { return limits_.slots; }
  // Of bytes(): keys and values.
  size_t cache_bytes() const;

 private:
  struct Slot;
  void plan();
  void reserve();
  void allocate_state(Exec& e);
  void forget_state();
  void pass(Trace& phase, std::span<const int32_t> docs, std::span<const int32_t> past,
            std::span<const KvCache> caches, int first_slot, bool step);
  void prefill(Slot& slot, int index);
  void decode(std::span<Slot> slots);
  std::span<const KvCache> caches_of(int slot);
  int64_t vocab() const { return decoder_.model().desc().vocab; }
  int64_t most_rows() const;
  int32_t* ids() { return tokens_.as<int32_t>(); }
  int32_t* positions() { return ids() + most_rows(); }

  RunDevice on_;
  Decoder decoder_;
  Limits limits_;
  Trace state_{"state"}, prefill_trace_{"prefill"}, decode_trace_{"decode"};
  RunMemory memory_;
  std::unique_ptr<Exec> exec_;  // null before the first run
  // From here on with spans of the Exec's, which must outlive them.
  RunAdapter adapter_;
  std::vector<Matrix> cache_memory_;
  std::vector<KvCache> caches_, slot_caches_;  // [block][slot]; one slot's
  Buffer tokens_;                              // ids and positions of a pass
  Matrix card_logits_;                         // [slots, vocab] fp32: of the pass before, on a card
  Buffer logits_;                              // the same with the host, each slot's in its row
};

}  // namespace qlora
