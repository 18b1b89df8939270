#include "tools/cuda_bench/sizes.h"

#include <unistd.h>

#include <filesystem>

#include "memory/error.h"
#include "memory/file.h"
#include "model/io/config_checkpoint.h"
#include "model/io/json.h"

namespace qlora::bench {

namespace fs = std::filesystem;
namespace {

struct LlamaShape {
  int64_t layers, dim, ff;
  int heads, kv_heads, head_dim;
  int64_t vocab;
  bool tied;
  double theta;
};

std::string config_of(const LlamaShape& s) {
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"hidden_size", s.dim},
              {"intermediate_size", s.ff},
              {"num_hidden_layers", s.layers},
              {"num_attention_heads", s.heads},
              {"num_key_value_heads", s.kv_heads},
              {"head_dim", s.head_dim},
              {"vocab_size", s.vocab},
              {"max_position_embeddings", 131072},
              {"rms_norm_eps", 1e-5},
              {"rope_theta", s.theta},
              {"hidden_act", "silu"},
              {"tie_word_embeddings", s.tied},
              {"torch_dtype", "bfloat16"}}
      .dump();
}

}  // namespace

// Descriptions are read from files alone.
ModelDesc desc_of(const StepSize& s) {
  const fs::path file = fs::temp_directory_path() / cat("qlora-bench-", getpid(), ".json");
  write_file(file.string(), s.config);
  ModelDesc desc = open_shapes(file.string())->desc();
  fs::remove(file);
  return desc;
}

double flops_per_token(const StepSize& s) {
  const ModelDesc d = desc_of(s);
  const auto each = [](int64_t a, int64_t b) { return static_cast<double>(a) * static_cast<double>(b); };
  double flops = 4 * each(d.vocab, d.dim);
  for (int block = 0; block < static_cast<int>(d.blocks.size()); ++block) {
    for (int k = 0; k < kLinears; ++k) {
      const int64_t in = d.in_features(block, static_cast<LinearKind>(k)),
                    out = d.out_features(block, static_cast<LinearKind>(k));
      flops += 4 * each(in, out) + 6 * each(s.rank, in + out);
    }
    flops += 14 * each(d.blocks[static_cast<size_t>(block)].q_dim(), s.sequence + 1) / 2;
  }
  return flops;
}

// Llama-3.1-8B and SmolLM2-135M as their config.json have them.
Sizes full_sizes() {
  const LlamaShape eight{32, 4096, 14336, 32, 8, 128, 128256, false, 500000},
      small{30, 576, 1536, 9, 3, 64, 49152, true, 100000};
  return {.peak = {4096, 8192},
          .proposals = 8,
          .burst = 0.05,
          .sustained = 2,
          .rounds = 5,
          .copy_bytes = size_t{1} << 30,
          .cycled_bytes = size_t{512} << 20,
          .weights = {{4096, 4096}, {1024, 4096}, {14336, 4096}, {4096, 14336}},
          .rows = {512, 2048, 4096},
          .few = {1, 2, 4, 8, 16, 64},
          .head_sizes = {64, 128},
          .sequences = {2048, 8192},
          .heads = 32,
          .kv_heads = 8,
          .small = {"SmolLM2-135M", config_of(small), 4, 512, 1, 16, 20},
          .large = {"8B", config_of(eight), 2, 2048, 4, 16, 5}};
}

Sizes tiny_sizes() {
  const LlamaShape tied{1, 64, 96, 4, 2, 16, 96, true, 10000}, untied{2, 64, 96, 4, 2, 16, 96, false, 10000};
  return {.peak = {32, 64},
          .proposals = 2,
          .burst = 0,
          .sustained = 0,
          .rounds = 1,
          .copy_bytes = size_t{1} << 16,
          .cycled_bytes = size_t{16} << 10,
          .weights = {{64, 128}, {40, 64}},
          .rows = {8, 65},
          .few = {1, 5},
          .head_sizes = {16},
          .sequences = {24},
          .heads = 4,
          .kv_heads = 2,
          .small = {"tiny, tied", config_of(tied), 1, 8, 1, 4, 1},
          .large = {"tiny", config_of(untied), 2, 8, 2, 4, 1}};
}

}  // namespace qlora::bench
