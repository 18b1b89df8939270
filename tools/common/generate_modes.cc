#include "tools/common/generate_modes.h"

#include <unistd.h>

#include <chrono>
#include <iostream>
#include <iterator>

#include "memory/error.h"
#include "model/text/chat.h"
#include "model/text/unicode.h"
#include "tools/common/format.h"
#include "tools/common/main.h"

namespace qlora::tools {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool on_terminal() { return isatty(1) == 1; }

// A model may write anything; a terminal would obey its control characters.
std::string shown_on(bool terminal, const std::string& text) {
  if (!terminal) return text;
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = unicode::next(text, at);
    const bool control = (c < 0x20 && c != U'\n' && c != U'\t') || (c >= 0x7f && c < 0xa0);
    out += control ? std::string("\xef\xbf\xbd") : text.substr(begin, at - begin);
  }
  return out;
}

// Shows an answer as it comes; false once nobody reads.
bool show(const std::string& part) {
  std::cout << shown_on(on_terminal(), part) << std::flush;
  return !stdout_reader_left();
}

void say_speed(Screen& screen, int64_t tokens, double seconds) {
  screen.detail(cat(format_count(tokens), " tokens in ", format_duration(seconds), " (",
                    format_value(static_cast<double>(tokens) / std::max(seconds, 1e-9)), " tok/s)"));
}

std::string prompt_text(const Options& options) {
  std::string text = options.get<std::string>("prompt");
  if (text != "-") return text;
  text.assign(std::istreambuf_iterator<char>(std::cin), {});
  if (!text.empty() && text.back() == '\n') text.pop_back();  // what `echo` puts behind it
  return unicode::lossy(text);
}

Json message(const char* role, const std::string& content) { return {{"role", role}, {"content", content}}; }

Json opening(const Options& options) {
  Json messages = Json::array();
  if (const auto system = options.find<std::string>("system")) messages.push_back(message("system", *system));
  return messages;
}

ChatEncoder chat_encoder(const GenerateSession& s) {
  if (s.text.templates.empty())
    fail(Category::input, s.base.source.path.string(),
         ": has no chat template; continue the prompt as it is with --raw, or give --chat-template");
  return ChatEncoder(s.tokenizer(), s.text.templates);
}

std::vector<int32_t> encode_messages(const ChatEncoder& encoder, const Json& messages) {
  return encoder.encode_prompt(Conversation::from_json(messages, "the conversation"));
}

Json result_of(const NamedAdapter& adapter, const Answer& answer, size_t prompt_tokens, double seconds) {
  return {{"adapter", adapter.name},
          {"text", answer.text},
          {"tokens", answer.tokens},
          {"prompt_tokens", prompt_tokens},
          {"finish", answer.finish},
          {"seconds", seconds},
          {"tokens_per_second", static_cast<double>(answer.tokens) / std::max(seconds, 1e-9)}};
}

void print_heading(const GenerateSession& s, const NamedAdapter& adapter) {
  if (s.adapters.size() > 1) std::cout << "--- " << adapter.name << " ---\n" << std::flush;
}

}  // namespace

int generate_prompt(GenerateSession& s) {
  s.answers.few = true;  // one answer at a time
  const std::string text = prompt_text(s.options);
  std::vector<int32_t> ids;
  if (s.options.get<bool>("raw")) {
    ids = encode_raw(s.tokenizer(), text);
    if (ids.empty())
      fail(Category::usage, s.options.origin("prompt"), ": has no tokens to continue; write some text");
  } else {
    Json messages = opening(s.options);
    messages.push_back(message("user", text));
    ids = encode_messages(chat_encoder(s), messages);
  }
  check_room(s.model->desc(), ids.size(), s.options.origin("prompt"));

  const bool json = s.options.get<bool>("json");
  Json results = Json::array();
  for (const NamedAdapter& adapter : s.adapters) {
    if (!json) print_heading(s, adapter);
    const auto start = Clock::now();
    const Answer a = answer(
                         s.model, s.tokenizer(), adapter.adapter, s.answers, {ids},
                         json ? OnText() : [](size_t, const std::string& part) { return show(part); })
                         .front();
    const double seconds = seconds_since(start);
    if (!json) std::cout << std::endl;
    say_speed(s.screen, a.tokens, seconds);
    results.push_back(result_of(adapter, a, ids.size(), seconds));
  }
  if (json) print_json(results.size() == 1 ? results[0] : Json{{"answers", results}});
  return 0;
}

int generate_chat(GenerateSession& s) {
  s.answers.few = true;
  const ChatEncoder encoder = chat_encoder(s);
  const bool typed = isatty(0) == 1;
  std::vector<Json> histories(s.adapters.size(), opening(s.options));
  if (typed) s.screen.line("Write a message; /reset starts over, Ctrl-D leaves.");
  const uint64_t seed = s.answers.seed;
  for (uint64_t turn = 0;; ++turn) {
    if (typed) std::cout << "> " << std::flush;
    std::string line;
    if (!std::getline(std::cin, line)) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line == "/reset") {
      histories.assign(histories.size(), opening(s.options));
      s.screen.line("A new conversation.");
      continue;
    }
    for (size_t i = 0; i < s.adapters.size(); ++i) {
      Json& history = histories[i];
      history.push_back(message("user", unicode::lossy(line)));
      const std::vector<int32_t> ids = encode_messages(encoder, history);
      if (static_cast<int64_t>(ids.size()) >= s.model->desc().max_positions) {
        s.screen.warning(cat("the conversation fills the model's context of ", s.model->desc().max_positions,
                             " tokens; /reset starts a new one"));
        history.erase(history.size() - 1);
        continue;
      }
      print_heading(s, s.adapters[i]);
      s.answers.seed = seed + turn;
      const auto start = Clock::now();
      const Answer a = answer(s.model, s.tokenizer(), s.adapters[i].adapter, s.answers, {ids},
                              [](size_t, const std::string& part) { return show(part); })
                           .front();
      std::cout << std::endl;
      if (stdout_reader_left()) return 0;
      say_speed(s.screen, a.tokens, seconds_since(start));
      history.push_back(message("assistant", a.text));
    }
  }
  if (typed) std::cout << std::endl;
  return 0;
}

}  // namespace qlora::tools
