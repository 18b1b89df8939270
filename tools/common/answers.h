#pragma once
// What qlora-generate runs: prompts to answers, several at a time, with one base and an adapter.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/generate.h"
#include "tools/common/session.h"

namespace qlora::tools {

struct Answer {
  std::string text;  // without special tokens and stop texts
  int64_t tokens = 0;
  const char* finish = "length";  // "stop": a token or text that ends answers came first
};

struct AnswerOptions {
  Sampling sampling;
  std::vector<int32_t> eos;
  std::vector<std::string> stops;
  int64_t max_new = 256;
  uint64_t seed = 42;
  Numerics numerics;
  RunDevice device = 1;
  bool few = false;  // as in Generator::Limits
};

// Sampling, stops and numbers from the options and the model; a stop text that is a special token of the
// tokenizer ends by its id.
AnswerOptions answer_options(const Options& options, const Base& base, const TextTools& text, Screen& screen);

// on_text(prompt, part) as answers grow; false ends that answer.
using OnText = std::function<bool(size_t, const std::string&)>;
// An answer a prompt, in order. They do not depend on each other, nor on how many run at once. An answer is
// cut where prompt and answer fill the model's context.
std::vector<Answer> answer(const std::shared_ptr<const Model>& model, const Tokenizer& tokenizer,
                           const Adapter& adapter, const AnswerOptions& options,
                           const std::vector<std::vector<int32_t>>& prompts, const OnText& on_text = {});

// Category::usage, opening with `where`, when the prompt leaves the model no room for an answer.
void check_room(const ModelDesc& desc, size_t prompt_tokens, const std::string& where);

// The ids of a text that is continued as it is: what the tokenizer puts in front, not what it puts behind.
std::vector<int32_t> encode_raw(const Tokenizer& tokenizer, const std::string& text);

}  // namespace qlora::tools
