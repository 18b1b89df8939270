#pragma once
#include <algorithm>
#include <cstring>

#include "model/io/checkpoint.h"
#include "model/io/stored_checkpoint.h"
#include "tests/model/io_support.h"

namespace qlora::io_test {

inline std::string gguf_name(std::string name) {
  const std::pair<const char*, const char*> parts[] = {{"model.embed_tokens", "token_embd"},
                                                       {"model.norm", "output_norm"},
                                                       {"lm_head", "output"},
                                                       {"model.layers.", "blk."},
                                                       {"self_attn.q_proj", "attn_q"},
                                                       {"self_attn.k_proj", "attn_k"},
                                                       {"self_attn.v_proj", "attn_v"},
                                                       {"self_attn.o_proj", "attn_output"},
                                                       {"mlp.gate_proj", "ffn_gate"},
                                                       {"mlp.up_proj", "ffn_up"},
                                                       {"mlp.down_proj", "ffn_down"},
                                                       {"input_layernorm", "attn_norm"},
                                                       {"post_attention_layernorm", "ffn_norm"}};
  for (const auto& [from, to] : parts)
    if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, std::strlen(from), to);
  return name;
}

// llama.cpp's converter: reshape(heads, 2, half, in).swapaxes(1, 2).
inline std::vector<float> permuted(const std::vector<float>& w, int64_t rows, int64_t cols, int heads) {
  std::vector<float> out(w.size());
  const int64_t half = rows / heads / 2;
  int64_t to = 0;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t j = 0; j < half; ++j)
      for (int64_t k = 0; k < 2; ++k, ++to)
        std::copy_n(w.begin() + (h * 2 * half + k * half + j) * cols, cols, out.begin() + to * cols);
  return out;
}

// A golden folder as a converter would write it in fp32.
inline GgufBuilder gguf_of(const Checkpoint& c) {
  const ModelDesc& d = c.desc();
  const BlockDesc& b = d.blocks[0];
  GgufBuilder out;
  out.string("general.architecture", "llama")
      .u32("llama.block_count", static_cast<uint32_t>(d.blocks.size()));
  out.u32("llama.context_length", static_cast<uint32_t>(d.max_positions));
  out.u32("llama.embedding_length", static_cast<uint32_t>(d.dim));
  out.u32("llama.feed_forward_length", static_cast<uint32_t>(b.ff));
  out.u32("llama.attention.head_count", static_cast<uint32_t>(b.q_heads));
  out.u32("llama.attention.head_count_kv", static_cast<uint32_t>(b.kv_heads));
  out.u32("llama.attention.key_length", static_cast<uint32_t>(b.head_dim));
  out.u32("llama.attention.value_length", static_cast<uint32_t>(b.head_dim));
  out.u32("llama.rope.dimension_count", static_cast<uint32_t>(b.head_dim));
  out.f32("llama.attention.layer_norm_rms_epsilon", b.norm_eps).f32("llama.rope.freq_base", 10000);
  out.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  for (const ExpectedTensor& e : expected_tensors(d)) {
    std::vector<float> w = e.vector ? c.read_vector(e.name(), e.cols) : rows_of(c, e.name(), e.rows, e.cols);
    if (e.permuted_heads != 0)
      w = e.vector ? permuted(w, e.cols, 1, e.permuted_heads) : permuted(w, e.rows, e.cols, e.permuted_heads);
    const std::string data(reinterpret_cast<const char*>(w.data()), w.size() * 4);
    out.tensor(gguf_name(e.name()),
               e.vector ? std::vector<int64_t>{e.cols} : std::vector<int64_t>{e.cols, e.rows}, 0, data);
  }
  return out;
}

}  // namespace qlora::io_test
