#include "model/families/families.h"
#include "model/families/llama_layout.h"

// The dense Qwen3 family: transformers' Qwen3Config, its defaults included. A Llama whose heads are as wide
// as the configuration says, each head of q and k normed before it turns.

namespace qlora {
namespace {

ModelDesc describe(const Json& json, const std::string& where) {
  ConfigReader config(json, where);
  LlamaLayout layout;
  layout.vocab = 151936;
  layout.ff = 22016;
  layout.kv_heads = 32;
  layout.head_dim = 128;
  layout.max_positions = 32768;
  layout.qk_norm = true;
  ModelDesc desc = read_llama_layout(config, layout);
  desc.family = "qwen3";
  config.only("use_sliding_window", false);
  config.ignore({"sliding_window", "max_window_layers"});  // without it these say nothing
  config.finish();
  return desc;
}

}  // namespace

const Family kQwen3Family = {"qwen3", describe, nullptr, nullptr, nullptr, false};

}  // namespace qlora
