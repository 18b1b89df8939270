#include "tools/common/answers.h"

#include <algorithm>

#include "tools/common/sampling.h"
#include "tools/common/stop_text.h"

namespace qlora::tools {
namespace {

constexpr int64_t kMostSlots = 16;
constexpr int64_t kCacheBytes = int64_t{1} << 30;  // what the caches of slots beyond the first may take

int slots_for(const ModelDesc& desc, size_t prompts, int64_t longest, DType compute) {
  int64_t row = 0;
  for (const BlockDesc& b : desc.blocks) row += 2 * b.kv_dim() * static_cast<int64_t>(size_of(compute));
  const int64_t room = kCacheBytes / std::max<int64_t>(1, row * longest);
  return static_cast<int>(std::clamp<int64_t>(std::min(room, static_cast<int64_t>(prompts)), 1, kMostSlots));
}

// One answer's text under way.
struct Growing {
  StreamDecoder decoder;
  StopText stop;
  bool wanted = true;  // the caller still takes text
};

}  // namespace

AnswerOptions answer_options(const Options& options, const Base& base, const TextTools& text,
                             Screen& screen) {
  AnswerOptions a;
  a.sampling = sampling_of(
      options, model_sampling(base.source.path, [&](const std::string& line) { screen.warning(line); }));
  a.eos = stop_ids(base.checkpoint->desc(), text);
  for (const std::string& stop : options.get<std::vector<std::string>>("stop")) {
    const auto id = text.tokenizer->token_to_id(stop);
    if (id && text.tokenizer->is_special(*id))
      a.eos.push_back(*id);
    else
      a.stops.push_back(stop);
  }
  a.max_new = options.get<int64_t>("max-new-tokens");
  a.seed = static_cast<uint64_t>(options.get<int64_t>("seed"));
  a.numerics = numerics_of(options);
  return a;
}

void check_room(const ModelDesc& desc, size_t prompt_tokens, const std::string& where) {
  if (static_cast<int64_t>(prompt_tokens) >= desc.max_positions)
    fail(Category::usage, where, ": ", prompt_tokens, " tokens; the model's context of ", desc.max_positions,
         " leaves no room for an answer; shorten it");
}

std::vector<int32_t> encode_raw(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids;
  const std::vector<TokenSpan> spans = tokenizer.encode_spans(text);
  for (const TokenSpan& s : spans) ids.push_back(s.id);
  // A post-processor's EOS, which stands for no text, would end the prompt before its answer.
  if (!spans.empty() && spans.back().begin == spans.back().end && tokenizer.is_special(spans.back().id) &&
      spans.size() > 1)
    ids.pop_back();
  return ids;
}

std::vector<Answer> answer(const std::shared_ptr<const Model>& model, const Tokenizer& tokenizer,
                           const Adapter& adapter, const AnswerOptions& o,
                           const std::vector<std::vector<int32_t>>& prompts, const OnText& on_text) {
  std::vector<Answer> answers(prompts.size());
  if (prompts.empty()) return answers;
  std::vector<Growing> growing;
  std::vector<Generator::Request> requests;
  size_t longest = 0;
  for (const std::vector<int32_t>& prompt : prompts) {
    growing.push_back({StreamDecoder(tokenizer), StopText(o.stops)});
    requests.push_back({prompt, o.max_new});
    longest = std::max(longest, prompt.size());
  }
  const ModelDesc& desc = model->desc();
  const int64_t room = std::min(static_cast<int64_t>(longest) + o.max_new, desc.max_positions);
  const auto generator =
      Generator::fitting(model, o.numerics, adapter.view(),
                         {slots_for(desc, prompts.size(), room, o.numerics.compute), room, o.few}, o.device);

  const auto add = [&](size_t i, const std::string& part) {
    answers[i].text += part;
    if (on_text && !part.empty() && growing[i].wanted) growing[i].wanted = on_text(i, part);
  };
  const auto on_token = [&](size_t i, int32_t id) {
    add(i, growing[i].stop.push(growing[i].decoder.push(id)));
    return growing[i].wanted && !growing[i].stop.stopped();
  };
  const auto ids = generator->run(requests, o.sampling, o.eos, o.seed, on_token);
  for (size_t i = 0; i < answers.size(); ++i) {
    const bool cut = !growing[i].stop.stopped();
    add(i, growing[i].stop.push(growing[i].decoder.finish()));
    add(i, growing[i].stop.finish());
    answers[i].tokens = static_cast<int64_t>(ids[i].size());
    const int64_t limit = std::min(o.max_new, room - static_cast<int64_t>(prompts[i].size()));
    if (!cut || answers[i].tokens < limit) answers[i].finish = "stop";
  }
  return answers;
}

}  // namespace qlora::tools
