#pragma once
// How the next token is drawn: the model's generation_config.json, then the options.
#include <filesystem>
#include <functional>
#include <string>

#include "model/generate.h"
#include "tools/common/options.h"

namespace qlora::tools {

// generation_config.json of a model folder as transformers reads it (top_k is 50 where sampling does not say
// otherwise); greedy without the file and for a GGUF. A value of the wrong type or range: Category::input,
// naming the key. `warn` gets a line for each key that would change the text and is not applied.
Sampling model_sampling(const std::filesystem::path& model,
                        const std::function<void(const std::string&)>& warn);

// What the options make of it: --greedy and --temperature 0 draw nothing; a temperature, top-k, top-p or
// min-p switches drawing on. Category::usage where they contradict each other.
Sampling sampling_of(const Options& options, Sampling model);

}  // namespace qlora::tools
