#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "memory/error.h"
#include "model/families/families.h"
#include "model/families/llama_layout.h"
#include "model/io/config.h"

// The Llama family (Llama 1-3, TinyLlama, SmolLM): transformers' LlamaConfig, its defaults included, and the
// GGUF architecture "llama".

namespace qlora {
namespace {

constexpr int64_t kMaxDim = LlamaLayout::kMaxDim;
constexpr int64_t kMaxLayers = LlamaLayout::kMaxLayers;
constexpr int64_t kMaxHeads = LlamaLayout::kMaxHeads;

ModelDesc describe(const Json& json, const std::string& where) {
  ConfigReader config(json, where);
  LlamaLayout layout;
  layout.mlp_bias = config.boolean("mlp_bias", false);
  ModelDesc desc = read_llama_layout(config, layout);
  desc.family = "llama";
  // What a Llama never has: each would change the result.
  config.only("pretraining_tp", 1);
  config.only("rope_interleaved", false);
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
