#include "model/families/llama_layout.h"

#include <cmath>

#include "memory/error.h"

namespace qlora {
namespace {

void check_heads(const ConfigReader& config, int64_t dim, int64_t heads, int64_t kv_heads,
                 bool own_head_dim) {
  if (heads % kv_heads != 0)
    config.refuse("num_key_value_heads", cat("it does not divide the ", heads, " query heads"), "correct it");
  if (!own_head_dim && dim % heads != 0)
    config.refuse("num_attention_heads", cat("it does not divide hidden_size ", dim),
                  "correct it or add head_dim");
}

BlockDesc read_block(ConfigReader& config, const LlamaLayout& l) {
  BlockDesc b;
  b.dim = config.integer("hidden_size", l.dim, 1, l.kMaxDim);
  b.ff = config.integer("intermediate_size", l.ff, 1, l.kMaxDim);
  const int64_t heads = config.integer("num_attention_heads", l.heads, 1, l.kMaxHeads);
  const int64_t kv_heads = config.integer("num_key_value_heads", l.kv_heads.value_or(heads), 1, l.kMaxHeads);
  const bool own = config.value("head_dim") != nullptr;
  check_heads(config, b.dim, heads, kv_heads, own || l.head_dim.has_value());
  b.q_heads = static_cast<int>(heads);
  b.kv_heads = static_cast<int>(kv_heads);
  b.head_dim = static_cast<int>(config.integer("head_dim", l.head_dim.value_or(b.dim / heads), 2, 4096));
  if (b.head_dim < 2 || b.head_dim % 2 != 0)
    config.refuse(own ? "head_dim" : "num_attention_heads",
                  cat("heads of ", b.head_dim, " cannot be rotated in pairs"), "correct it");
  b.rotary_dims = b.head_dim;
  b.norm_eps = static_cast<float>(config.number("rms_norm_eps", l.norm_eps));
  if (!(b.norm_eps > 0 && b.norm_eps < 1))
    config.refuse("rms_norm_eps", "a number between 0 and 1 belongs there", "correct it");
  b.attn_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(b.head_dim)));
  b.qkv_bias = b.o_bias = config.boolean("attention_bias", false);
  b.mlp_bias = l.mlp_bias;
  b.qk_norm = l.qk_norm;
  const std::string act = config.string("hidden_act", "silu");
  if (act != "silu" && act != "swish")
    config.refuse("hidden_act", "only silu is supported", "use another model");
  b.activation = Activation::silu;
  return b;
}

void check_ids(const ConfigReader& config, const ModelDesc& desc) {
  if (desc.bos && *desc.bos >= desc.vocab)
    config.refuse("bos_token_id", cat("the vocabulary has ", desc.vocab, " tokens"), "correct it");
  for (const int32_t id : desc.eos)
    if (id >= desc.vocab)
      config.refuse("eos_token_id", cat("the vocabulary has ", desc.vocab, " tokens"), "correct it");
}

}  // namespace

ModelDesc read_llama_layout(ConfigReader& config, const LlamaLayout& l) {
  ModelDesc desc;
  desc.vocab = config.integer("vocab_size", l.vocab, 1, l.kMaxDim);
  const BlockDesc block = read_block(config, l);
  desc.dim = block.dim;
  desc.blocks.assign(static_cast<size_t>(config.integer("num_hidden_layers", l.layers, 1, l.kMaxLayers)),
                     block);
  desc.max_positions = config.integer("max_position_embeddings", l.max_positions, 1, INT32_MAX);
  desc.final_norm_eps = block.norm_eps;
  desc.rope = read_rope(config, l.rope_theta);
  desc.tied = config.boolean("tie_word_embeddings", false);
  read_token_ids(config, desc);
  check_ids(config, desc);
  config.only("attention_dropout", 0.0);
  config.only("is_encoder_decoder", false);
  config.only("add_cross_attention", false);
  config.only("chunk_size_feed_forward", 0);
  config.only("pruned_heads", Json::object());
  config.only("partial_rotary_factor", 1.0);
  config.ignore({"original_max_position_embeddings"});  // kept in the scaling itself
  if (const Json* types = config.value("layer_types"))
    for (const Json& type : *types)
      if (type != "full_attention")
        config.refuse("layer_types", "only full_attention is supported", "use another model");
  return desc;
}

}  // namespace qlora
