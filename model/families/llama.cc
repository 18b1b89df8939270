#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "memory/error.h"
#include "model/families/families.h"
#include "model/io/config.h"

// The Llama family (Llama 1-3, TinyLlama, SmolLM): transformers' LlamaConfig, its defaults included, and the
// GGUF architecture "llama".

namespace qlora {
namespace {

constexpr int64_t kMaxDim = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;

void check_heads(const ConfigReader& config, int64_t dim, int64_t heads, int64_t kv_heads,
                 bool own_head_dim) {
  if (heads % kv_heads != 0)
    config.refuse("num_key_value_heads", cat("it does not divide the ", heads, " query heads"), "correct it");
  if (!own_head_dim && dim % heads != 0)
    config.refuse("num_attention_heads", cat("it does not divide hidden_size ", dim),
                  "correct it or add head_dim");
}

BlockDesc describe_block(ConfigReader& config) {
  BlockDesc b;
  b.dim = config.integer("hidden_size", 4096, 1, kMaxDim);
  b.ff = config.integer("intermediate_size", 11008, 1, kMaxDim);
  const int64_t heads = config.integer("num_attention_heads", 32, 1, kMaxHeads);
  const int64_t kv_heads = config.integer("num_key_value_heads", heads, 1, kMaxHeads);
  const bool own = config.value("head_dim") != nullptr;
  check_heads(config, b.dim, heads, kv_heads, own);
  b.q_heads = static_cast<int>(heads);
  b.kv_heads = static_cast<int>(kv_heads);
  b.head_dim = static_cast<int>(config.integer("head_dim", b.dim / heads, 2, 4096));
  if (b.head_dim < 2 || b.head_dim % 2 != 0)
    config.refuse(own ? "head_dim" : "num_attention_heads",
                  cat("heads of ", b.head_dim, " cannot be rotated in pairs"), "correct it");
  b.rotary_dims = b.head_dim;
  b.norm_eps = static_cast<float>(config.number("rms_norm_eps", 1e-6));
  if (!(b.norm_eps > 0 && b.norm_eps < 1))
    config.refuse("rms_norm_eps", "a number between 0 and 1 belongs there", "correct it");
  b.attn_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(b.head_dim)));
  b.qkv_bias = b.o_bias = config.boolean("attention_bias", false);
  b.mlp_bias = config.boolean("mlp_bias", false);
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

ModelDesc describe(const Json& json, const std::string& where) {
  ConfigReader config(json, where);
  ModelDesc desc;
  desc.family = "llama";
  desc.vocab = config.integer("vocab_size", 32000, 1, kMaxDim);
  const BlockDesc block = describe_block(config);
  desc.dim = block.dim;
  desc.blocks.assign(static_cast<size_t>(config.integer("num_hidden_layers", 32, 1, kMaxLayers)), block);
  desc.max_positions = config.integer("max_position_embeddings", 2048, 1, INT32_MAX);
  desc.final_norm_eps = block.norm_eps;
  desc.rope = read_rope(config, 10000);
  desc.tied = config.boolean("tie_word_embeddings", false);
  read_token_ids(config, desc);
  check_ids(config, desc);
  // What a Llama never has: each would change the result.
  config.only("pretraining_tp", 1);
  config.only("rope_interleaved", false);
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
  config.finish();
  return desc;
}

// Metadata that says nothing of the mathematics, or that gguf_config reads.
const std::set<std::string> kKnownKeys = {"block_count",
                                          "context_length",
                                          "embedding_length",
                                          "feed_forward_length",
                                          "vocab_size",
                                          "attention.head_count",
                                          "attention.head_count_kv",
                                          "attention.key_length",
                                          "attention.value_length",
                                          "attention.layer_norm_rms_epsilon",
                                          "attention.causal",
                                          "rope.dimension_count",
                                          "rope.freq_base",
                                          "rope.scaling.type",
                                          "rope.scaling.factor",
                                          "rope.scaling.original_context_length",
                                          "rope.scaling.finetuned",
                                          "rope.scale_linear",
                                          "expert_count",
                                          "tensor_data_layout"};

// The integer llama.KEY; without a fallback it must be there.
int64_t gguf_int(const GgufFile& file, const std::string& key, std::optional<int64_t> fallback,
                 int64_t high) {
  const auto value = file.integer("llama." + key, 0, high);
  if (!value && !fallback)
    fail(Category::input, file.path(), ": llama.", key, " is absent; convert the model again");
  return value.value_or(fallback.value_or(0));
}

void check_gguf_keys(const GgufFile& file) {
  for (const std::string& key : file.keys()) {
    if (key.rfind("llama.", 0) == 0 && kKnownKeys.count(key.substr(6)) == 0)
      fail(Category::input, file.path(), ": ", key, " is ", file.shown_value(key),
           ": the engine does not know this key, which may change what the model computes; use another file");
  }
  if (file.integer("llama.expert_count", 0, INT32_MAX).value_or(0) > 0)
    fail(Category::input, file.path(), ": llama.expert_count is ", file.shown_value("llama.expert_count"),
         ": mixtures of experts are not supported; use a dense model");
}

// Numbers of the file are fp32: the shortest decimal that gives that float back is what its maker typed.
double shortest(double d) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), static_cast<float>(d)).ptr;
  double out = 0;
  std::from_chars(text.data(), end, out);
  return out;
}

Json gguf_rope_scaling(const GgufFile& file) {
  const std::string type = file.string("llama.rope.scaling.type").value_or("none");
  const double old_scale = file.number("llama.rope.scale_linear").value_or(1);
  if (type == "none" || type == "linear") {
    const double factor = type == "linear" ? file.number("llama.rope.scaling.factor").value_or(1) : old_scale;
    if (factor == 1) return nullptr;
    return Json{{"rope_type", "linear"}, {"type", "linear"}, {"factor", factor}};
  }
  fail(Category::input, file.path(), ": llama.rope.scaling.type is ", shown_text(type),
       ": rope scaling of this kind is not supported; supported are none, linear, and rope_freqs.weight");
}

Json gguf_config(const GgufFile& file) {
  check_gguf_keys(file);
  const GgufTensor* embed = file.find("token_embd.weight");
  if (embed == nullptr || embed->shape.size() != 2)
    fail(Category::input, file.path(),
         ": tensor token_embd.weight is absent or no matrix; convert the model again");
  const int64_t dim = gguf_int(file, "embedding_length", {}, kMaxDim);
  const int64_t heads = gguf_int(file, "attention.head_count", {}, kMaxHeads);
  const int64_t head_dim = gguf_int(file, "attention.key_length", heads > 0 ? dim / heads : 0, kMaxDim);
  for (const char* same : {"attention.value_length", "rope.dimension_count"})
    if (gguf_int(file, same, head_dim, kMaxDim) != head_dim)
      fail(Category::input, file.path(), ": llama.", same, " is ", file.shown_value(cat("llama.", same)),
           " where heads are ", head_dim, " wide: partial heads are not supported; use another model");
  const auto eps = file.number("llama.attention.layer_norm_rms_epsilon");
  if (!eps)
    fail(Category::input, file.path(),
         ": llama.attention.layer_norm_rms_epsilon is absent; convert the model again");
  const bool has_bos = file.has("tokenizer.ggml.bos_token_id"),
             has_eos = file.has("tokenizer.ggml.eos_token_id");
  const auto id = [&](const char* key) -> Json {
    const auto value = file.integer(key, -1, INT32_MAX);
    return value ? Json(*value) : Json(nullptr);
  };
  Json config = Json::object();  // key by key: a braced list leaks when a value in it throws (GCC 11)
  config["architectures"] = Json::array({"LlamaForCausalLM"});
  config["attention_bias"] = file.find("blk.0.attn_q.bias") != nullptr;
  config["attention_dropout"] = 0.0;
  config["bos_token_id"] = has_bos ? id("tokenizer.ggml.bos_token_id") : Json(nullptr);
  config["eos_token_id"] = has_eos ? id("tokenizer.ggml.eos_token_id") : Json(nullptr);
  config["head_dim"] = head_dim;
  config["hidden_act"] = "silu";
  config["hidden_size"] = dim;
  config["initializer_range"] = 0.02;
  config["intermediate_size"] = gguf_int(file, "feed_forward_length", {}, kMaxDim);
  config["max_position_embeddings"] = gguf_int(file, "context_length", {}, INT32_MAX);
  config["mlp_bias"] = file.find("blk.0.ffn_up.bias") != nullptr;
  config["model_type"] = "llama";
  config["num_attention_heads"] = heads;
  config["num_hidden_layers"] = gguf_int(file, "block_count", {}, kMaxLayers);
  config["num_key_value_heads"] = gguf_int(file, "attention.head_count_kv", heads, kMaxHeads);
  config["pad_token_id"] = id("tokenizer.ggml.padding_token_id");
  config["pretraining_tp"] = 1;
  config["rms_norm_eps"] = shortest(*eps);
  config["rope_scaling"] = gguf_rope_scaling(file);
  config["rope_theta"] = shortest(file.number("llama.rope.freq_base").value_or(10000));
  config["tie_word_embeddings"] = file.find("output.weight") == nullptr;
  config["use_cache"] = true;
  config["vocab_size"] = embed->shape[0];
  return config;
}

std::string gguf_module(const std::string& module) {
  static const std::map<std::string, std::string> parts = {
      {"self_attn.q_proj", "attn_q"},          {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},          {"self_attn.o_proj", "attn_output"},
      {"mlp.gate_proj", "ffn_gate"},           {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},           {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", "ffn_norm"}};
  if (module == kEmbedName) return "token_embd";
  if (module == kFinalNormName) return "output_norm";
  if (module == kHeadName) return "output";
  const std::string layers = "model.layers.";
  const size_t dot = module.find('.', layers.size());
  check(module.rfind(layers, 0) == 0 && dot != std::string::npos, "no module of a llama: ", module);
  return "blk." + module.substr(layers.size(), dot - layers.size()) + "." + parts.at(module.substr(dot + 1));
}

}  // namespace

const Family kLlamaFamily = {"llama", describe, "llama", gguf_config, gguf_module, true};

}  // namespace qlora
