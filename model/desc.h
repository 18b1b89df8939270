#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/gated_act/gated_act.h"

namespace qlora {

// How rotary angles are formed. `default` is theta^(-2i/rotary_dims); the others scale it as transformers'
// modeling_rope_utils does.
struct RopeDesc {
  enum class Kind : uint8_t { standard, linear, llama3 };
  Kind kind = Kind::standard;
  double theta = 10000;
  double factor = 1;                                 // linear, llama3
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  int64_t original_max_positions = 0;                // llama3
  std::vector<float> gguf_factors;                   // rope_freqs.weight of a GGUF: divides each frequency
};

// One decoder block as a value. What makes a family is numbers here, never a branch on a name.
struct BlockDesc {
  int64_t dim = 0, ff = 0;
  int q_heads = 0, kv_heads = 0, head_dim = 0, rotary_dims = 0;
  float norm_eps = 1e-5f, norm_offset = 0;
  float attn_scale = 0, softcap = 0;
  int window = 0;  // 0: full attention
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;  // each head of q and of k has an RMSNorm (norm_eps, norm_offset), before it turns
  Activation activation = Activation::silu;
  int64_t q_dim() const { return int64_t{q_heads} * head_dim; }
  int64_t kv_dim() const { return int64_t{kv_heads} * head_dim; }
};

// The linears of a block, in the order of the forward pass.
enum class LinearKind : uint8_t { q, k, v, o, gate, up, down };
inline constexpr int kLinears = 7;

// Its norms: of the stream before attention and before the MLP, and of one head of q and of k.
enum class NormKind : uint8_t { attention, mlp, q, k };
inline constexpr int kNorms = 4;

struct ModelDesc {
  std::string family;  // config.json's model_type ("llama")
  int64_t vocab = 0, dim = 0, max_positions = 0;
  std::vector<BlockDesc> blocks;
  RopeDesc rope;
  float final_norm_eps = 1e-5f, final_norm_offset = 0;
  float embed_scale = 1, logit_softcap = 0;
  bool tied = false;  // lm_head is the embedding table
  std::optional<int32_t> bos, pad;
  std::vector<int32_t> eos;

  int64_t out_features(int block, LinearKind k) const;
  int64_t in_features(int block, LinearKind k) const;
  bool has_bias(int block, LinearKind k) const;
  // How many weights; 0: the block has no such norm.
  int64_t norm_size(int block, NormKind k) const;
};

// Hugging Face names of the Llama layout, which is what a checkpoint is asked for whatever file it lies in:
// "model.layers.3.self_attn.q_proj", without ".weight".
std::string linear_name(int block, LinearKind k);
std::string norm_name(int block, NormKind k);
inline constexpr const char* kEmbedName = "model.embed_tokens";
inline constexpr const char* kFinalNormName = "model.norm";
inline constexpr const char* kHeadName = "lm_head";

}  // namespace qlora
