#include "model/io/config.h"

#include <algorithm>
#include <filesystem>

#include "memory/error.h"

namespace qlora {
namespace {

// What transformers writes into every config.json and what tools leave there: labels, generation defaults,
// bookkeeping. None of it changes what the model computes.
constexpr const char* kHarmless[] = {"architectures",
                                     "model_type",
                                     "transformers_version",
                                     "torch_dtype",
                                     "dtype",
                                     "use_cache",
                                     "initializer_range",
                                     "_name_or_path",
                                     "_commit_hash",
                                     "_attn_implementation",
                                     "_attn_implementation_autoset",
                                     "attn_implementation",
                                     "auto_map",
                                     "transformers.js_config",
                                     "is_llama_config",
                                     "unsloth_version",
                                     "unsloth_fixed",
                                     "gradient_checkpointing",
                                     "output_attentions",
                                     "output_hidden_states",
                                     "return_dict",
                                     "torchscript",
                                     "problem_type",
                                     "id2label",
                                     "label2id",
                                     "finetuning_task",
                                     "task_specific_params",
                                     "tokenizer_class",
                                     "prefix",
                                     "decoder_start_token_id",
                                     "sep_token_id",
                                     "max_length",
                                     "min_length",
                                     "do_sample",
                                     "early_stopping",
                                     "num_beams",
                                     "num_beam_groups",
                                     "diversity_penalty",
                                     "temperature",
                                     "top_k",
                                     "top_p",
                                     "typical_p",
                                     "repetition_penalty",
                                     "length_penalty",
                                     "no_repeat_ngram_size",
                                     "encoder_no_repeat_ngram_size",
                                     "bad_words_ids",
                                     "num_return_sequences",
                                     "output_scores",
                                     "return_dict_in_generate",
                                     "forced_bos_token_id",
                                     "forced_eos_token_id",
                                     "remove_invalid_values",
                                     "exponential_decay_length_penalty",
                                     "suppress_tokens",
                                     "begin_suppress_tokens",
                                     "use_bfloat16",
                                     "tf_legacy_loss",
                                     "is_decoder",
                                     "tie_encoder_decoder",
                                     "quantization_config"};

constexpr int64_t kMaxId = INT32_MAX;

std::optional<int32_t> token_id(ConfigReader& config, const char* key) {
  const int64_t id = config.integer(key, -1, -1, kMaxId);
  if (id < 0) return std::nullopt;
  return static_cast<int32_t>(id);
}

void add_eos(const Json& value, const std::string& where, std::vector<int32_t>& eos) {
  const auto add = [&](const Json& id) {
    if (!id.is_number_integer() || id.get<int64_t>() > kMaxId)
      fail(Category::input, where, ": eos_token_id is ", shown(value), " where token ids belong; correct it");
    const auto i = static_cast<int32_t>(std::max<int64_t>(id.get<int64_t>(), -1));
    if (i >= 0 && std::find(eos.begin(), eos.end(), i) == eos.end()) eos.push_back(i);
  };
  if (value.is_array())
    for (const Json& id : value) add(id);
  else
    add(value);
}

// The keys of rope_scaling or rope_parameters, whatever spells the kind.
RopeDesc rope_of(ConfigReader& rope, double theta) {
  RopeDesc out;
  const std::string old_kind = rope.string("type", "default");
  const std::string kind = rope.string("rope_type", old_kind);
  out.theta = rope.number("rope_theta", theta);
  rope.only("partial_rotary_factor", 1.0);
  if (kind == "linear" || kind == "llama3") {
    out.kind = kind == "linear" ? RopeDesc::Kind::linear : RopeDesc::Kind::llama3;
    out.factor = rope.number("factor", 0);
    if (!(out.factor >= 1)) rope.refuse("factor", "a factor of at least 1 belongs there", "correct it");
  } else if (kind != "default") {
    rope.refuse(rope.value("rope_type") != nullptr ? "rope_type" : "type",
                "rope scaling of this kind is not supported", "supported are default, linear, llama3");
  }
  if (kind == "llama3") {
    out.low_freq_factor = rope.number("low_freq_factor", 0);
    out.high_freq_factor = rope.number("high_freq_factor", 0);
    out.original_max_positions = rope.integer("original_max_position_embeddings", 0, 0, INT32_MAX);
    if (!(out.low_freq_factor > 0 && out.high_freq_factor > out.low_freq_factor))
      rope.refuse("high_freq_factor", "0 < low_freq_factor < high_freq_factor must hold", "correct it");
    if (out.original_max_positions == 0)
      rope.refuse("original_max_position_embeddings", "llama3 scaling needs it", "add it");
  } else {
    rope.ignore({"factor", "original_max_position_embeddings"});
  }
  rope.finish();
  return out;
}

}  // namespace

ConfigReader::ConfigReader(const Json& config, const std::string& where) : config_(config), where_(where) {
  if (!config.is_object())
    fail(Category::input, where, ": is no JSON object; check that it is the right file");
}

int64_t ConfigReader::integer(const char* key, int64_t fallback, int64_t low, int64_t high) {
  known_.insert(key);
  return json_int(config_, where_, key, low, high).value_or(fallback);
}

double ConfigReader::number(const char* key, double fallback) {
  known_.insert(key);
  return json_number(config_, where_, key).value_or(fallback);
}

bool ConfigReader::boolean(const char* key, bool fallback) {
  known_.insert(key);
  return json_bool(config_, where_, key).value_or(fallback);
}

std::string ConfigReader::string(const char* key, const std::string& fallback) {
  known_.insert(key);
  return json_string(config_, where_, key).value_or(fallback);
}

const Json* ConfigReader::value(const char* key) {
  known_.insert(key);
  const auto it = config_.find(key);
  return it == config_.end() || it->is_null() ? nullptr : &*it;
}

void ConfigReader::only(const char* key, const Json& wanted) {
  const Json* v = value(key);
  if (v != nullptr && *v != wanted)
    refuse(key, "only " + shown(wanted) + " is supported", "use another model or correct the key");
}

void ConfigReader::refuse(const char* key, const std::string& why, const std::string& remedy) const {
  const auto it = config_.find(key);
  fail(Category::input, where_, ": ", key, " is ", it == config_.end() ? "absent" : shown(*it), ": ", why,
       "; ", remedy);
}

void ConfigReader::ignore(std::initializer_list<const char*> keys) {
  known_.insert(keys.begin(), keys.end());
}

void ConfigReader::finish() {
  known_.insert(std::begin(kHarmless), std::end(kHarmless));
  // A leading underscore is transformers' own bookkeeping (_name_or_path, _attn_implementation), and a
  // token's id names a token: the model computes the same.
  const auto harmless = [](const std::string& key) {
    const std::string_view token_id = "_token_id";
    return key.front() == '_' || (key.size() > token_id.size() &&
                                  key.compare(key.size() - token_id.size(), token_id.size(), token_id) == 0);
  };
  for (const auto& [key, value] : config_.items())
    if (!value.is_null() && known_.count(key) == 0 && (key.empty() || !harmless(key)))
      refuse(key.c_str(), "the engine does not know this key, which may change what the model computes",
             "remove it if it does not");
}

RopeDesc read_rope(ConfigReader& config, double default_theta) {
  const double theta = config.number("rope_theta", default_theta);
  const Json* scaling = config.value("rope_scaling");
  const Json* parameters = config.value("rope_parameters");
  if (scaling != nullptr && parameters != nullptr && *scaling != *parameters)
    config.refuse("rope_scaling", "rope_parameters says something else", "keep one of the two");
  const Json* rope = parameters != nullptr ? parameters : scaling;
  const Json standard = Json::object();
  const std::string where =
      config.where() + ": " + (parameters != nullptr ? "rope_parameters" : "rope_scaling");
  ConfigReader reader(rope != nullptr ? *rope : standard, where);
  const RopeDesc out = rope_of(reader, theta);
  if (!(out.theta > 0))
    (reader.value("rope_theta") != nullptr ? reader : config)
        .refuse("rope_theta", "a positive number belongs there", "correct it");
  return out;
}

void read_token_ids(ConfigReader& config, ModelDesc& desc) {
  desc.bos = token_id(config, "bos_token_id");
  desc.pad = token_id(config, "pad_token_id");
  if (const Json* eos = config.value("eos_token_id")) add_eos(*eos, config.where(), desc.eos);
}

void add_generation_ids(const std::string& path, ModelDesc& desc) {
  std::error_code ignored;
  if (path.empty() || !std::filesystem::exists(path, ignored)) return;
  const Json generation = read_json(path);
  if (!generation.is_object()) fail(Category::input, path, ": is no JSON object; restore or remove the file");
  const auto eos = generation.find("eos_token_id");
  if (eos != generation.end() && !eos->is_null()) add_eos(*eos, path, desc.eos);
}

}  // namespace qlora
