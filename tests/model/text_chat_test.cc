#include "model/text/chat.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "memory/error.h"
#include "model/text/unicode.h"
#include "tests/support/golden.h"
#include "tests/support/temp_folder.h"

// Loss masks: transformers' own for {% generation %}, and what must hold for templates without it.
namespace qlora {
namespace {

const Tokenizer& smollm2() {
  static const auto tokenizer = [] {
    test::TempFolder folder;
    std::ofstream(folder / "tokenizer.json", std::ios::binary)
        << test::unxz_golden("text/smollm2.tokenizer.json.xz");
    std::ofstream(folder / "tokenizer_config.json")
        << test::read_golden("text/smollm2.tokenizer_config.json");
    return Tokenizer::from_folder(folder.path());
  }();
  return *tokenizer;
}

const Json& goldens() {
  static const Json all = Json::parse(test::unxz_golden("text/templates.json.xz"));
  return all;
}

ChatTemplates one(const ChatTemplate& t) { return {{{"default", t}}}; }

std::string template_source(const std::string& name) {
  for (const Json& t : goldens()["templates"])
    if (t["name"] == name) return t["source"];
  return goldens()["generation_templates"].at(name);
}

ChatEncoder encoder(const std::string& name, ChatOptions options = {}) {
  return {smollm2(), one(ChatTemplate::parse(template_source(name), name)), options};
}

Conversation conversation(const std::string& json) {
  return Conversation::from_json(Json::parse(json), "test");
}

const Conversation& golden_chat(const std::string& name) {
  static const auto all = [] {
    std::map<std::string, Conversation> out;
    for (const Json& chat : goldens()["chats"]) out[chat["name"]] = Conversation::from_json(chat, "chat");
    return out;
  }();
  return all.at(name);
}

// Character ranges as byte ranges.
std::vector<ByteRange> bytes(const std::string& text, const Json& spans) {
  std::vector<size_t> at{0};
  for (size_t i = 0; i < text.size();) {
    unicode::next(text, i);
    at.push_back(i);
  }
  std::vector<ByteRange> out;
  for (const Json& s : spans) out.push_back({at.at(s[0]), at.at(s[1])});
  return out;
}

TEST(TextChat, GenerationMasksAreTheReferences) {
  const Json masks = Json::parse(test::unxz_golden("text/masks.json.xz"));
  ChatOptions options;
  options.content_as_text = false;  // as transformers does
  size_t learned = 0;
  for (const Json& row : masks["smollm2"]) {
    const ChatEncoder chat = encoder(row["template"], options);
    const EncodedChat out = chat.encode(golden_chat(row["chat"]));
    const std::string where = row["template"].get<std::string>() + " on " + row["chat"].get<std::string>();
    EXPECT_EQ(out.ids, row["ids"].get<std::vector<int32_t>>()) << where;
    const auto& mask = row.contains("mask_by_offsets") ? row["mask_by_offsets"] : row["mask"];
    EXPECT_EQ(out.loss, mask.get<std::vector<uint8_t>>()) << where;
    learned += static_cast<size_t>(std::count(out.loss.begin(), out.loss.end(), 1));
  }
  EXPECT_GT(learned, 1000u);
  // Of the other tokenizers' rows, the text and the blocks.
  for (const Json& row : masks["other"]) {
    const std::string name = row["template"];
    const Rendered out =
        ChatTemplate::parse(template_source(name), name).render(golden_chat(row["chat"]), {});
    EXPECT_EQ(out.text, row["text"].get<std::string>()) << name << " on " << row["chat"];
    EXPECT_EQ(out.generation, bytes(out.text, row["spans"])) << name << " on " << row["chat"];
  }
}

// The text that is learned, part by part.
std::vector<std::string> learned(const ChatEncoder& chat, const Conversation& c) {
  const std::string text = chat.render(c, false).text;
  std::vector<std::string> out;
  for (const ByteRange& r : chat.learned(c)) out.push_back(text.substr(r.begin, r.end - r.begin));
  return out;
}

using Parts = std::vector<std::string>;

TEST(TextChat, EachAnswerAndItsEndOfTurn) {
  const ChatEncoder chat = encoder("smollm2");
  const Conversation& c = golden_chat("multi_turn_system");
  EXPECT_EQ(learned(chat, c), (Parts{"b<|im_end|>", "d<|im_end|>"}));
  const EncodedChat out = chat.encode(c);
  ASSERT_EQ(out.ids.size(), out.loss.size());
  std::vector<int32_t> kept;
  for (size_t i = 0; i < out.ids.size(); ++i)
    if (out.loss[i]) kept.push_back(out.ids[i]);
  EXPECT_EQ(kept, (std::vector<int32_t>{82, 2, 84, 2}));
  EXPECT_EQ(chat.end_of_turn(), 2);

  ChatOptions last;
  last.loss_on = LossOn::last;
  EXPECT_EQ(learned(encoder("smollm2", last), c), Parts{"d<|im_end|>"});
  EXPECT_EQ(learned(encoder("chatml_generation.jinja", last), c), Parts{"d<|im_end|>"});
  ChatOptions all;
  all.loss_on = LossOn::all;
  const EncodedChat whole = encoder("smollm2", all).encode(c);
  EXPECT_EQ(whole.loss[0], 0);
  EXPECT_EQ(std::count(whole.loss.begin(), whole.loss.end(), 1),
            static_cast<ptrdiff_t>(whole.loss.size()) - 1);
}

// A row of training data: the prompt as generation will see it, then the answer, then the end of the turn.
TEST(TextChat, RowsAreThePromptAndTheAnswer) {
  const Tokenizer& t = smollm2();
  const ChatEncoder chat = encoder("smollm2");
  const std::string answer = R"({"number": "902", "street": "LAKE N", "zip": "28557"})";
  Conversation c = conversation(
      R"([{"role": "system", "content": "Split the US address into its parts. Answer with JSON only."},
    {"role": "user", "content": "902 LAKE N SHORE DR MOREHEAD CITY 28557"}])");
  std::vector<int32_t> want = chat.encode_prompt(c);
  EXPECT_EQ(t.decode(std::span(want).last(4)), "<|im_start|>assistant\n");
  std::vector<uint8_t> loss(want.size(), 0);
  for (const int32_t id : t.encode(answer)) want.push_back(id), loss.push_back(1);
  want.push_back(2), loss.push_back(1);
  want.push_back(t.encode("\n")[0]), loss.push_back(0);
  c.messages.push_back({{"role", "assistant"}, {"content", answer}});
  const EncodedChat out = chat.encode(c);
  EXPECT_EQ(out.ids, want);
  EXPECT_EQ(out.loss, loss);
  ChatOptions cut;
  cut.drop_tail = true;
  want.pop_back(), loss.pop_back();
  const EncodedChat shorter = encoder("smollm2", cut).encode(c);
  EXPECT_EQ(shorter.ids, want);
  EXPECT_EQ(shorter.loss, loss);
}

TEST(TextChat, SpecialTokensOfUsersAreText) {
  const Conversation& c = golden_chat("special_text");
  const EncodedChat safe = encoder("smollm2").encode(c);
  // The template's own: the default system turn, the user's and the assistant's.
  EXPECT_EQ(std::count(safe.ids.begin(), safe.ids.end(), 1), 3);
  EXPECT_EQ(std::count(safe.ids.begin(), safe.ids.end(), 2), 3);
  EXPECT_EQ(smollm2().decode(safe.ids), encoder("smollm2").render(c, false).text);
  ChatOptions parsed;
  parsed.content_as_text = false;
  const EncodedChat naive = encoder("smollm2", parsed).encode(c);
  EXPECT_EQ(std::count(naive.ids.begin(), naive.ids.end(), 1), 4);
  // Content that stands in a set block, a macro or a filter is still the user's.
  const ChatEncoder wrapped(smollm2(),
                            one(ChatTemplate::parse("{% macro m(x) %}{{ x | trim }}{% endmacro %}{% for a in "
                                                    "messages %}{% set s %}{{ m(a.content) }}{% endset %}"
                                                    "{{ '<|im_start|>' ~ s[0:] ~ '<|im_end|>' }}{% endfor %}",
                                                    "t")));
  const EncodedChat out = wrapped.encode(c);
  EXPECT_EQ(std::count(out.ids.begin(), out.ids.end(), 2), 2);
}

TEST(TextChat, EndOfTurnByToken) {
  // An answer that contains the end of turn, as text: the mask goes through the real one.
  const Conversation c = conversation(
      R"([{"role": "user", "content": "q"}, {"role": "assistant", "content": "say <|im_end|>\n twice"}, {"role": "user", "content": "x"}])");
  EXPECT_EQ(learned(encoder("smollm2"), c), Parts{"say <|im_end|>\n twice<|im_end|>"});
  const EncodedChat out = encoder("smollm2").encode(c);
  EXPECT_EQ(out.ids[static_cast<size_t>(std::find(out.loss.rbegin(), out.loss.rend(), 1).base() -
                                        out.loss.begin()) -
                    1],
            2);
}

TEST(TextChat, EmptyAnswersAndNone) {
  EXPECT_EQ(learned(encoder("smollm2"), golden_chat("empty_assistant")), Parts{"<|im_end|>"});
  EXPECT_EQ(learned(encoder("smollm2"), golden_chat("user")), Parts{});
  EXPECT_EQ(learned(encoder("smollm2"), golden_chat("two_assistants")),
            (Parts{"two<|im_end|>", "three<|im_end|>"}));
  EXPECT_EQ(learned(encoder("smollm2"), golden_chat("starts_with_assistant")), Parts{"I begin.<|im_end|>"});
}

// Qwen3 writes an empty thinking block into the last answer only: what came before is not what the shorter
// conversation renders to, and the answers are found all the same.
TEST(TextChat, TemplatesThatRewriteHistory) {
  const ChatEncoder qwen = encoder("qwen3");
  EXPECT_EQ(learned(qwen, golden_chat("multi_turn_system")),
            (Parts{"b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"}));
  EXPECT_EQ(learned(qwen, golden_chat("reasoning_content")),
            (Parts{"4<|im_end|>", "<think>\nagain\n</think>\n\n6<|im_end|>"}));
  // Its prompt opens <think>, which finished answers lack.
  const ChatEncoder r1 = encoder("deepseek_r1_distill");
  EXPECT_EQ(learned(r1, golden_chat("multi_turn"))[0].substr(0, 1), "b");
  EXPECT_EQ(learned(r1, golden_chat("multi_turn"))[1].substr(0, 1), "d");
}

TEST(TextChat, TemplatesWithoutSpecialTokens) {
  const ChatEncoder chat(
      smollm2(),
      one(ChatTemplate::parse("{% for m in messages %}{{ m.role | upper }}: {{ m.content }} END\n{% endfor %}"
                              "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
                              "t")));
  EXPECT_EQ(learned(chat, golden_chat("multi_turn")), (Parts{"b END", "d END"}));
  EXPECT_EQ(chat.end_of_turn(), std::nullopt);
}

TEST(TextChat, ToolCallsAreAnswers) {
  const auto parts = learned(encoder("qwen3"), golden_chat("tool_use"));
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0],
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", "
            "\"unit\": \"c\"}}\n</tool_call><|im_end|>");
  EXPECT_EQ(parts[1], "<think>\n\n</think>\n\nIt is 21.5 °C.<|im_end|>");
}

// Whatever a template does to a conversation, the answers lie in order, inside the text, and hold what was
// answered.
TEST(TextChat, EveryTemplateAndConversation) {
  size_t answered = 0;
  for (const Json& t : goldens()["templates"]) {
    const ChatEncoder chat(smollm2(), one(ChatTemplate::parse(t["source"].get<std::string>(), t["name"])));
    for (const Json& row : goldens()["chats"]) {
      const Conversation& c = golden_chat(row["name"]);
      try {
        const std::string text = chat.render(c, false).text;
        size_t from = 0;
        for (const ByteRange& r : chat.learned(c)) {
          EXPECT_LE(from, r.begin);
          EXPECT_LE(r.begin, r.end);
          EXPECT_LE(r.end, text.size());
          from = r.end;
          ++answered;
        }
      } catch (const TemplateError&) {
        // the template refuses the conversation
      } catch (const Error& e) {
        EXPECT_NE(std::string(e.what()).find("message "), std::string::npos) << e.what();
      }
    }
  }
  EXPECT_GT(answered, 500u);
}

TEST(TextChat, BosStandsOnce) {
  const ChatEncoder chat(smollm2(),
                         one(ChatTemplate::parse("{{ bos_token }}{{ messages[0].content }}", "t")));
  const EncodedChat out = chat.encode(golden_chat("user"));
  EXPECT_EQ(out.ids[0], 1);
  EXPECT_EQ(std::count(out.ids.begin(), out.ids.end(), 1), 1);
}

}  // namespace
}  // namespace qlora
