#include "model/io/peft.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "memory/error.h"
#include "memory/file.h"
#include "model/io/config.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "quant/blockwise8.h"
#include "quant/weight_view.h"

namespace qlora {
namespace {

constexpr int kMaxRank = 1 << 16;
constexpr int64_t kResidentBytes = int64_t{512} << 10;  // of the file: a resumed run's memory is full already
constexpr const char* kConfigName = "/adapter_config.json";
constexpr const char* kTensorsName = "adapter_model";

std::string tensor_name(const LoraModule& m, char which) {
  return "base_model.model." + linear_name(m.block, m.kind) + ".lora_" + which + ".weight";
}

// target_modules, exclude_modules: a list of names, or a string that is a regular expression.
ModuleTargets read_targets(ConfigReader& config, const char* key) {
  ModuleTargets out;
  const Json* value = config.value(key);
  if (value == nullptr) return out;
  if (value->is_string()) {
    out.regex = value->get<std::string>();
    return out;
  }
  if (!value->is_array())
    config.refuse(key, "a list of names or a regular expression belongs there", "correct it");
  for (const Json& name : *value) {
    if (!name.is_string()) config.refuse(key, "a list of names belongs there", "correct it");
    out.names.push_back(name.get<std::string>());
  }
  return out;
}

template <class T>
std::vector<std::pair<std::string, T>> read_pattern(ConfigReader& config, const char* key, double low,
                                                    double high) {
  std::vector<std::pair<std::string, T>> out;
  const Json* value = config.value(key);
  if (value == nullptr) return out;
  if (!value->is_object()) config.refuse(key, "an object belongs there", "correct it");
  for (const auto& [pattern, number] : value->items()) {
    const bool fits = std::is_integral_v<T> ? number.is_number_integer() : number.is_number();
    if (!fits || !(number.template get<double>() >= low && number.template get<double>() <= high))
      config.refuse(key, cat(shown_text(pattern), " is ", shown(number)), "correct it");
    out.emplace_back(pattern, number.template get<T>());
  }
  return out;
}

// A key that must be null, false or empty.
void refuse_set(ConfigReader& config, const char* key, const char* what) {
  const Json* value = config.value(key);
  if (value == nullptr || *value == Json(false) || (value->is_structured() && value->empty())) return;
  config.refuse(key, std::string(what) + " is not supported yet", "train the adapter without it");
}

void refuse_unsupported(ConfigReader& config) {
  config.only("peft_type", "LORA");
  config.only("task_type", "CAUSAL_LM");
  config.only("bias", "none");
  refuse_set(config, "use_dora", "DoRA");
  refuse_set(config, "modules_to_save", "training whole modules beside LoRA");
  refuse_set(config, "lora_bias", "a bias in the branch");
  refuse_set(config, "fan_in_fan_out", "a transposed linear");
  refuse_set(config, "target_parameters", "LoRA on bare parameters");
  refuse_set(config, "trainable_token_indices", "training single tokens");
  refuse_set(config, "layer_replication", "replicating layers");
  refuse_set(config, "alora_invocation_tokens", "activated LoRA");
  for (const char* key : {"use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
                          "velora_config", "megatron_config", "eva_config", "corda_config", "lora_ga_config"})
    refuse_set(config, key, "this kind of LoRA");
  // These initializations change the base weights, so that the adapter fits another base than the file's.
  if (const Json* init = config.value("init_lora_weights"))
    if (!init->is_boolean() && *init != "gaussian" && *init != "orthogonal")
      config.refuse("init_lora_weights", "it changes the base's weights, which is not supported",
                    "convert the adapter to a plain LoRA with PEFT");
  config.ignore({"auto_mapping", "revision", "inference_mode", "peft_version", "megatron_core",
                 "qalora_group_size", "loftq_config", "runtime_config", "ensure_weight_tying"});
}

std::vector<int> read_layers(ConfigReader& config) {
  const Json* pattern = config.value("layers_pattern");
  if (pattern != nullptr && *pattern != "layers" && *pattern != Json::array({"layers"}) && !pattern->empty())
    config.refuse("layers_pattern", "only \"layers\" is supported",
                  "write target_modules as a regular expression");
  std::vector<int> out;
  const Json* value = config.value("layers_to_transform");
  if (value == nullptr) return out;
  for (const Json& layer : value->is_array() ? *value : Json::array({*value})) {
    if (!layer.is_number_integer() || layer.get<int64_t>() < 0 || layer.get<int64_t>() > INT32_MAX)
      config.refuse("layers_to_transform", "layer numbers belong there", "correct it");
    out.push_back(static_cast<int>(layer.get<int64_t>()));
  }
  return out;
}

// PEFT's get_pattern_key: the first key that matches the name from some dot on.
template <class T>
T by_pattern(const std::vector<std::pair<std::string, T>>& patterns, const std::vector<ModuleRegex>& compiled,
             const std::string& name, T otherwise) {
  for (size_t i = 0; i < patterns.size(); ++i)
    if (compiled[i].full_match(name)) return patterns[i].second;
  return otherwise;
}

template <class T>
std::vector<ModuleRegex> compile(const std::vector<std::pair<std::string, T>>& patterns,
                                 const std::string& where) {
  std::vector<ModuleRegex> out;
  for (const auto& [pattern, value] : patterns)
    out.emplace_back("(.*\\.)?(" + pattern + ")", where, Category::input);
  return out;
}

// One of A or B to `to`, [rows, cols].
void load_tensor(const SafetensorsFile& file, const std::string& name, int64_t rows, int64_t cols,
                 float* to) {
  const TensorInfo* t = file.find(name);
  if (t == nullptr)
    fail(Category::input, file.path(), ": tensor ", name,
         " is absent; adapter_config.json and the tensors are of different adapters");
  if (t->shape != std::vector<int64_t>{rows, cols})
    fail(Category::input, file.path(), ": tensor ", name, " is ", t->shape_text(),
         " where the model asks for [", rows, ", ", cols,
         "]; the adapter was trained on another model or with another rank");
  WeightView w;
  w.rows = rows;
  w.cols = cols;
  w.data = file.data(*t);
  w.format = t->dtype == DType::f16 ? Format::f16 : t->dtype == DType::bf16 ? Format::bf16 : Format::f32;
  if (t->dtype != DType::f32 && t->dtype != DType::f16 && t->dtype != DType::bf16)
    fail(Category::input, file.path(), ": tensor ", name, " is ", safetensors_name(t->dtype),
         "; adapters are read in F32, F16 or BF16");
  const int64_t row_bytes = static_cast<int64_t>(size_of(t->dtype)) * cols,
                piece = std::max<int64_t>(1, kResidentBytes / std::max<int64_t>(row_bytes, 1));
  for (int64_t begin = 0; begin < rows; begin += piece) {
    for (int64_t r = begin; r < std::min(rows, begin + piece); ++r) {
      decode_row(w, r, 0, cols, to + r * cols);
      const int64_t bad = first_non_finite(to + r * cols, cols);
      if (bad < cols)
        fail(Category::input, file.path(), ": tensor ", name, ": row ", r, ", column ", bad, " is ",
             to[r * cols + bad], "; train or fetch the adapter again");
    }
    file.file().forget(0, file.file().size());
  }
}

}  // namespace

AdapterConfig read_adapter_config(const std::string& folder) {
  const std::string path = folder + kConfigName;
  const Json json = read_json(path);
  ConfigReader config(json, path);
  refuse_unsupported(config);
  AdapterConfig out;
  out.base_model = config.string("base_model_name_or_path", "");
  out.r = static_cast<int>(config.integer("r", 8, 1, kMaxRank));
  out.lora_alpha = config.number("lora_alpha", 8);
  out.lora_dropout = config.number("lora_dropout", 0);
  if (!(out.lora_dropout >= 0 && out.lora_dropout < 1))
    config.refuse("lora_dropout", "a number from 0 to below 1 belongs there", "correct it");
  out.use_rslora = config.boolean("use_rslora", false);
  out.targets = read_targets(config, "target_modules");
  if (out.targets.names.empty() && out.targets.regex.empty())
    config.refuse("target_modules", "an adapter needs modules", "add them");
  out.excluded = read_targets(config, "exclude_modules");
  out.layers = read_layers(config);
  out.rank_pattern = read_pattern<int>(config, "rank_pattern", 1, kMaxRank);
  out.alpha_pattern = read_pattern<double>(config, "alpha_pattern", -1e30, 1e30);
  config.finish();
  return out;
}

std::vector<LoraChoice> adapter_choices(const AdapterConfig& config, const ModelDesc& desc,
                                        const std::string& where) {
  ModuleTargets targets = config.targets;
  if (targets.names.empty() && targets.regex == "all-linear")
    targets = ModuleTargets::parse("all-linear", desc);
  std::set<std::string> excluded;
  if (!config.excluded.names.empty() || !config.excluded.regex.empty())
    for (const ModuleRef& m : matching_linears(config.excluded, desc, where)) excluded.insert(m.name);
  const std::vector<ModuleRegex> ranks = compile(config.rank_pattern, where);
  const std::vector<ModuleRegex> alphas = compile(config.alpha_pattern, where);
  std::vector<LoraChoice> out;
  for (const ModuleRef& m : matching_linears(targets, desc, where)) {
    const bool layer = config.layers.empty() ||
                       std::find(config.layers.begin(), config.layers.end(), m.block) != config.layers.end();
    if (!layer || excluded.count(m.name) != 0) continue;
    const int rank = by_pattern(config.rank_pattern, ranks, m.name, config.r);
    const double alpha = by_pattern(config.alpha_pattern, alphas, m.name, config.lora_alpha);
    const double divisor = config.use_rslora ? std::sqrt(static_cast<double>(rank)) : rank;
    out.push_back({m.block, m.kind, rank, static_cast<float>(alpha / divisor)});
  }
  if (out.empty())
    fail(Category::input, where,
         ": target_modules match no linear of the model; the adapter is for another model");
  return out;
}

void load_adapter(const std::string& folder, const AdapterLayout& layout, std::span<float> params) {
  check(static_cast<int64_t>(params.size()) == layout.size(), "parameters of another layout");
  const std::string path = folder + "/" + kTensorsName + ".safetensors";
  const SafetensorsFile file(path);
  std::set<std::string> known;
  for (const LoraModule& m : layout.modules()) {
    known.insert(tensor_name(m, 'A'));
    known.insert(tensor_name(m, 'B'));
  }
  for (const TensorInfo& t : file.tensors())
    if (known.count(t.name) == 0)
      fail(Category::input, path, ": tensor ", t.name,
           " has no place in the adapter that adapter_config.json describes for this model");
  for (const LoraModule& m : layout.modules()) {
    load_tensor(file, tensor_name(m, 'A'), m.rank, m.in, params.data() + m.a);
    load_tensor(file, tensor_name(m, 'B'), m.out, m.rank, params.data() + m.b);
  }
}

}  // namespace qlora
