#pragma once
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/adapter.h"
#include "model/desc.h"
#include "model/io/module_match.h"

namespace qlora {

// adapter_config.json of a LoRA, as PEFT 0.21 reads and writes it. Patterns keep their order: PEFT takes the
// first that matches.
struct AdapterConfig {
  std::string base_model;  // base_model_name_or_path: a hub id where known
  int r = 8;
  double lora_alpha = 8;
  double lora_dropout = 0;
  bool use_rslora = false;
  ModuleTargets targets;
  ModuleTargets excluded;   // nothing when names and regex are empty
  std::vector<int> layers;  // layers_to_transform; empty: all
  std::vector<std::pair<std::string, int>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
};

// Category::input, naming file and key, for what this engine would compute otherwise than PEFT: DoRA,
// modules_to_save, biases, PiSSA-like bases, and any key that it does not know and that is not null.
AdapterConfig read_adapter_config(const std::string& folder);

// The branches that the configuration puts on a model, with rank and scale by PEFT's rules (patterns match as
// re.match(r"(.*\.)?(KEY)$"); alpha / r, or alpha / sqrt(r)). Category::input when it matches no linear.
std::vector<LoraChoice> adapter_choices(const AdapterConfig& config, const ModelDesc& desc,
                                        const std::string& where);

// Fills the flat parameters (model/adapter.h) from adapter_model.safetensors, fp32, bf16 or fp16. Every
// branch must be there with its shape, nothing else may be; NaN and Inf are refused. Category::input naming
// the tensor.
void load_adapter(const std::string& folder, const AdapterLayout& layout, std::span<float> params);

// What README.md tells about a training run. No local paths: a base or data set given by path is named by its
// last part.
struct ModelCard {
  std::string base;  // hub id, or path
  std::string data;  // data set, hub id or path
  std::string data_sha256;
  std::vector<std::pair<std::string, std::string>> settings, results;
};

// adapter_model.safetensors (fp32), adapter_config.json (inference_mode true) and README.md, each written to
// the side and renamed. The folder must exist. Category::io when the system fails.
void save_adapter(const std::string& folder, const AdapterConfig& config, const AdapterLayout& layout,
                  std::span<const float> params, const ModelCard& card);

}  // namespace qlora
