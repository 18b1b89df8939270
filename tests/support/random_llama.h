#pragma once
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "memory/dtype.h"
#include "memory/random.h"
#include "model/io/config_checkpoint.h"
#include "model/io/stored_checkpoint.h"
#include "model/weights.h"
#include "tests/support/temp_folder.h"

namespace qlora::test {

struct LlamaShape {
  int64_t layers, dim, ff, heads, kv_heads, vocab;
  bool tied = true;
};

inline std::string write_llama_config(const std::string& folder, const LlamaShape& s) {
  std::string path = folder + "/config.json";
  std::ofstream(path) << nlohmann::json{{"architectures", {"LlamaForCausalLM"}},
                                        {"model_type", "llama"},
                                        {"hidden_size", s.dim},
                                        {"intermediate_size", s.ff},
                                        {"num_hidden_layers", s.layers},
                                        {"num_attention_heads", s.heads},
                                        {"num_key_value_heads", s.kv_heads},
                                        {"vocab_size", s.vocab},
                                        {"max_position_embeddings", 4096},
                                        {"rms_norm_eps", 1e-5},
                                        {"rope_theta", 10000.0},
                                        {"hidden_act", "silu"},
                                        {"tie_word_embeddings", s.tied},
                                        {"torch_dtype", "bfloat16"}};
  return path;
}

// The file's header for all tensors of the model; `bytes`: what follows it.
inline std::string llama_header(const std::string& config, int64_t& bytes) {
  nlohmann::ordered_json header;
  bytes = 0;
  for (const ExpectedTensor& t : expected_tensors(open_shapes(config)->desc())) {
    const std::vector<int64_t> shape = t.vector ? std::vector{t.cols} : std::vector{t.rows, t.cols};
    const int64_t end = bytes + (t.vector ? 1 : t.rows) * t.cols * static_cast<int64_t>(sizeof(bf16));
    header[t.name()] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {bytes, end}}};
    bytes = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

inline void write_llama(const std::string& folder, const LlamaShape& shape, float amplitude, bool drawn) {
  int64_t bytes = 0;
  const std::string header = llama_header(write_llama_config(folder, shape), bytes),
                    path = folder + "/model.safetensors";
  const uint64_t size = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof(size));
  file << header;
  for (uint64_t i = 0; drawn && i < static_cast<uint64_t>(bytes) / sizeof(bf16); ++i) {
    const bf16 w(static_cast<float>(unit_interval(random_bits(7, i)) * 2 - 1) * amplitude);
    file.write(reinterpret_cast<const char*>(&w), sizeof(w));
  }
  file.close();
  std::filesystem::resize_file(path, sizeof(size) + size + static_cast<uint64_t>(bytes));
}

// A Hugging Face folder (config.json, model.safetensors in bf16) of a Llama whose weights are drawn from
// [-amplitude, amplitude): the same ones for the same shape. The folder must exist.
inline void write_random_llama(const std::string& folder, const LlamaShape& shape, float amplitude) {
  write_llama(folder, shape, amplitude, true);
}
// The same with a hole for all weights: they read as zeros and take no room.
inline void write_hollow_llama(const std::string& folder, const LlamaShape& shape) {
  write_llama(folder, shape, 0, false);
}

// A random Llama quantized here to NF4 with double quantization, in memory alone.
inline std::shared_ptr<const Model> random_nf4_llama(const LlamaShape& shape, float amplitude) {
  const TempFolder folder;
  write_random_llama(folder.path(), shape, amplitude);
  BaseSpec spec;
  spec.quantize = QuantizedSpec{};
  return Model::load(Checkpoint::open(folder.path()), spec, 2);
}

}  // namespace qlora::test
