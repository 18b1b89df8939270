#include <cmath>
#include <filesystem>
#include <map>

#include "memory/error.h"
#include "memory/file.h"
#include "model/io/json.h"
#include "model/io/peft.h"
#include "model/io/safetensors.h"

namespace qlora {
namespace {

// 8.0 is written 8, as PEFT's users do.
Json number(double d) {
  if (d == std::floor(d) && std::abs(d) < 1e15) return static_cast<int64_t>(d);
  return d;
}

Json targets_json(const ModuleTargets& t) {
  if (!t.names.empty()) return t.names;
  if (!t.regex.empty()) return t.regex;
  return nullptr;
}

template <class T>
Json pattern_json(const std::vector<std::pair<std::string, T>>& patterns) {
  Json out = Json::object();
  for (const auto& [pattern, value] : patterns) out[pattern] = number(value);
  return out;
}

std::string config_text(const AdapterConfig& c) {
  const Json layers = c.layers.empty() ? Json(nullptr) : Json(c.layers);
  const Json config = {{"alpha_pattern", pattern_json(c.alpha_pattern)},
                       {"auto_mapping", nullptr},
                       {"base_model_name_or_path", c.base_model},
                       {"bias", "none"},
                       {"exclude_modules", targets_json(c.excluded)},
                       {"fan_in_fan_out", false},
                       {"inference_mode", true},
                       {"init_lora_weights", true},
                       {"layers_pattern", nullptr},
                       {"layers_to_transform", layers},
                       {"lora_alpha", number(c.lora_alpha)},
                       {"lora_dropout", c.lora_dropout},
                       {"modules_to_save", nullptr},
                       {"peft_type", "LORA"},
                       {"r", c.r},
                       {"rank_pattern", pattern_json(c.rank_pattern)},
                       {"revision", nullptr},
                       {"target_modules", targets_json(c.targets)},
                       {"task_type", "CAUSAL_LM"},
                       {"use_dora", false},
                       {"use_rslora", c.use_rslora}};
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";  // paths may be any bytes
}

bool is_hub_id(const std::string& name) {
  std::error_code ignored;
  if (name.empty() || name[0] == '/' || name[0] == '.' || name[0] == '~') return false;
  const size_t slash = name.find('/');
  return slash != std::string::npos && name.find('/', slash + 1) == std::string::npos &&
         !std::filesystem::exists(name, ignored);
}

// No local path leaves this machine.
std::string public_name(const std::string& name) {
  if (is_hub_id(name)) return name;
  std::filesystem::path path(name);
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

std::string table(const std::vector<std::pair<std::string, std::string>>& rows) {
  std::string text = "| | |\n| --- | --- |\n";
  for (const auto& [name, value] : rows) text += "| " + name + " | " + value + " |\n";
  return text;
}

std::string card_text(const AdapterConfig& config, const ModelCard& card) {
  std::string text = "---\n";
  if (is_hub_id(card.base)) text += "base_model: " + card.base + "\n";
  text += "library_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- qlora\n---\n\n";
  text += "# LoRA adapter for " + public_name(card.base) + "\n\nTrained with qlora.\n\n";
  text += cat("- base: ", public_name(card.base), "\n- data: ", public_name(card.data), " (sha256 ",
              card.data_sha256, ")\n- rank ", config.r, ", alpha ", config.lora_alpha,
              config.use_rslora ? ", rsLoRA" : "", ", dropout ", config.lora_dropout, "\n\n");
  if (!card.settings.empty()) text += "## Settings\n\n" + table(card.settings) + "\n";
  if (!card.results.empty()) text += "## Result\n\n" + table(card.results) + "\n";
  return text;
}

struct Named {
  const LoraModule* module;
  char which;
};

}  // namespace

void save_adapter(const std::string& folder, const AdapterConfig& config, const AdapterLayout& layout,
                  std::span<const float> params, const ModelCard& card) {
  check(static_cast<int64_t>(params.size()) == layout.size(), "parameters of another layout");
  std::vector<TensorSpec> specs;
  std::map<std::string, Named> named;
  for (const LoraModule& m : layout.modules())
    for (const char which : {'A', 'B'}) {
      const std::string name =
          "base_model.model." + linear_name(m.block, m.kind) + ".lora_" + which + ".weight";
      specs.push_back(
          {name, DType::f32,
           which == 'A' ? std::vector<int64_t>{m.rank, m.in} : std::vector<int64_t>{m.out, m.rank}});
      named[name] = {&m, which};
    }
  SafetensorsWriter writer(folder + "/adapter_model.safetensors", std::move(specs));
  for (const TensorSpec& t : writer.order()) {
    const Named& n = named.at(t.name);
    writer.write(t.name, params.data() + (n.which == 'A' ? n.module->a : n.module->b), t.bytes());
  }
  writer.commit();
  write_file(folder + "/adapter_config.json", config_text(config));
  write_file(folder + "/README.md", card_text(config, card));
}

}  // namespace qlora
