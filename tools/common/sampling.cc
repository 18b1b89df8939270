#include "tools/common/sampling.h"

#include "model/io/json.h"

namespace qlora::tools {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMostK = INT32_MAX;
constexpr int kTransformersTopK = 50;

// Keys of transformers that change the text, with the value at which they do nothing.
struct Unapplied {
  const char* key;
  double neutral;
};
constexpr Unapplied kUnapplied[] = {
    {"num_beams", 1},           {"typical_p", 1},      {"epsilon_cutoff", 0},
    {"eta_cutoff", 0},          {"penalty_alpha", 0},  {"no_repeat_ngram_size", 0},
    {"min_length", 0},          {"min_new_tokens", 0}, {"encoder_repetition_penalty", 1},
    {"bad_words_ids", 0},       {"sequence_bias", 0},  {"suppress_tokens", 0},
    {"forced_bos_token_id", 0}, {"top_h", 0},          {"begin_suppress_tokens", 0},
    {"forced_eos_token_id", 0}, {"guidance_scale", 1}, {"exponential_decay_length_penalty", 0},
    {"stop_strings", 0}};

void warn_unapplied(const Json& config, const std::string& where,
                    const std::function<void(const std::string&)>& warn) {
  for (const auto& [key, neutral] : kUnapplied) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null() || (it->is_number() && *it == neutral) ||
        (it->is_structured() && it->empty()))
      continue;
    warn(cat(where, ": ", key, " is ", shown(*it), " and is not applied here"));
  }
}

double number_in(const Json& config, const std::string& where, const char* key, double fallback, double low,
                 double high, bool above_low) {
  const std::optional<double> value = json_number(config, where, key);
  if (!value) return fallback;
  if (*value > high || *value < low || (above_low && *value == low))
    fail(Category::input, where, ": ", key, " is ", *value, "; it must be ", above_low ? "above " : "from ",
         low, high < 1e9 ? cat(" to ", high) : "");
  return *value;
}

void check_contradictions(const Options& options) {
  if (!options.given("greedy")) return;
  const double temperature = options.find<double>("temperature").value_or(1);
  if (options.get<bool>("greedy")) {
    for (const char* drawing : {"temperature", "top-k", "top-p", "min-p"})
      if (options.given(drawing) && !(std::string(drawing) == "temperature" && temperature == 0))
        fail(Category::usage, options.origin("greedy"), " and ", options.origin(drawing),
             " contradict each other: the likeliest token needs no draw; leave one out");
  } else if (temperature == 0) {
    fail(Category::usage, options.origin("greedy"), " asks for a draw and ", options.origin("temperature"),
         " 0 for none; leave one out");
  }
}

}  // namespace

Sampling model_sampling(const fs::path& model, const std::function<void(const std::string&)>& warn) {
  const fs::path path = model / "generation_config.json";
  Sampling s;
  std::error_code ignored;
  s.top_k = kTransformersTopK;
  if (!fs::is_directory(model, ignored) || !fs::exists(path, ignored)) return s;
  const std::string where = path.string();
  const Json config = read_json(where);
  if (!config.is_object()) fail(Category::input, where, ": is no JSON object; restore or remove the file");
  s.greedy = !json_bool(config, where, "do_sample").value_or(false);
  s.temperature = static_cast<float>(number_in(config, where, "temperature", 1, 0, 1e9, false));
  if (s.temperature == 0) s.greedy = true;
  s.top_k = static_cast<int>(json_int(config, where, "top_k", 0, kMostK).value_or(kTransformersTopK));
  s.top_p = static_cast<float>(number_in(config, where, "top_p", 1, 0, 1, true));
  s.min_p = static_cast<float>(number_in(config, where, "min_p", 0, 0, 1, false));
  s.repetition_penalty = static_cast<float>(number_in(config, where, "repetition_penalty", 1, 0, 1e9, true));
  warn_unapplied(config, where, warn);
  return s;
}

Sampling sampling_of(const Options& options, Sampling s) {
  check_contradictions(options);
  for (const char* drawing : {"temperature", "top-k", "top-p", "min-p"})
    if (options.given(drawing)) s.greedy = false;
  if (options.given("temperature")) {
    s.temperature = static_cast<float>(options.get<double>("temperature"));
    if (s.temperature == 0) s.greedy = true;
  }
  if (options.given("top-k"))
    s.top_k = static_cast<int>(std::min<int64_t>(options.get<int64_t>("top-k"), kMostK));
  if (options.given("top-p")) s.top_p = static_cast<float>(options.get<double>("top-p"));
  if (options.given("min-p")) s.min_p = static_cast<float>(options.get<double>("min-p"));
  if (options.given("repetition-penalty"))
    s.repetition_penalty = static_cast<float>(options.get<double>("repetition-penalty"));
  if (options.given("greedy")) s.greedy = options.get<bool>("greedy");
  if (s.greedy) s.temperature = 1;  // nothing is drawn; no division by zero either
  return s;
}

}  // namespace qlora::tools
