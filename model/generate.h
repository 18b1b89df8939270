#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/decoder.h"

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
    bool few = false;     // steps by products of few rows (gemm_few.h): what pays for up to four slots
  };
  // Plans and reserves its own memory (caches, workspace). Category::memory when there is none.
  Generator(std::shared_ptr<const Model> model, Numerics numerics, const AdapterView& adapter,
            const Limits& limits, int threads);

  struct Request {
    std::vector<int32_t> prompt;  // at least one token
    int64_t max_new = 0;          // cut where prompt + answer would pass limits.longest
  };
  // on_token(request, id) as tokens come, in each request's order; false ends that request. eos ids end it
  // too and are not handed out. Request i draws from a stream of its own, of (seed, i). Returns each
  // request's new ids.
  using OnToken = std::function<bool(size_t, int32_t)>;
  std::vector<std::vector<int32_t>> run(std::span<const Request> requests, const Sampling& sampling,
                                        std::span<const int32_t> eos, uint64_t seed,
                                        const OnToken& on_token = {});

  // What it takes while it runs; little of it before.
  size_t bytes() const { return arena_.bytes() + logits_.size() * sizeof(float) + decoder_.table_bytes(); }

 private:
  struct Slot;
  void plan();
  void make_caches(Exec& e);
  void prefill(Slot& slot, int index);
  void decode(std::span<Slot> slots);
  std::span<const KvCache> caches_of(int slot);

  Decoder decoder_;
  AdapterView adapter_;
  Limits limits_;
  int threads_;
  Trace caches_trace_{"caches"}, prefill_trace_{"prefill"}, decode_trace_{"decode"};
  Arena arena_;
  std::unique_ptr<Exec> exec_;
  std::vector<Matrix> cache_memory_;
  std::vector<KvCache> caches_, slot_caches_;  // [block][slot]; one slot's
  std::vector<float> logits_;                  // [slots, vocab]
};

}  // namespace qlora
