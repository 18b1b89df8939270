#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "memory/error.h"
#include "model/text/chat_template.h"
#include "tests/support/golden.h"
#include "tests/support/temp_folder.h"

// Chat templates against what transformers renders: 21 real templates, 57 conversations, with and without a
// prompt.
namespace qlora {
namespace {

const Json& goldens() {
  static const Json all = Json::parse(test::unxz_golden("text/templates.json.xz"));
  return all;
}

// The clock of the goldens: Sunday 2025-03-09 14:05:06.
std::tm sunday() {
  std::tm t{};
  t.tm_year = 125, t.tm_mon = 2, t.tm_mday = 9, t.tm_hour = 14, t.tm_min = 5, t.tm_sec = 6, t.tm_wday = 0,
  t.tm_yday = 67;
  return t;
}

RenderOptions options(const Json& specials, bool prompt) {
  RenderOptions out;
  out.add_generation_prompt = prompt;
  out.specials = specials.get<std::map<std::string, std::string>>();
  out.now = sunday();
  return out;
}

std::map<std::string, Conversation> chats() {
  std::map<std::string, Conversation> out;
  for (const Json& chat : goldens()["chats"]) out[chat["name"]] = Conversation::from_json(chat, "chat");
  return out;
}

void expect_render(const ChatTemplate& chat_template, const Conversation& chat, const RenderOptions& how,
                   const Json& want) {
  const std::string where = chat_template.name() + " on " + want["chat"].get<std::string>();
  try {
    const Rendered out = chat_template.render(chat, how);
    ASSERT_TRUE(want.contains("text")) << where << ": wanted " << want["message"] << ", got " << out.text;
    EXPECT_EQ(out.text, want["text"].get<std::string>()) << where;
  } catch (const TemplateError& e) {
    ASSERT_FALSE(want.contains("text")) << where << ": " << e.what();
    EXPECT_EQ(e.category(), Category::input);
    EXPECT_EQ(e.raised(), want["error"] == "TemplateError") << where << ": " << e.what();
    if (e.raised()) {
      EXPECT_EQ(e.message(), want["message"].get<std::string>()) << where;
    }
    EXPECT_GT(e.line(), 0);
  }
}

TEST(TextTemplate, RealTemplatesRenderAsTheReference) {
  const auto all = chats();
  size_t renders = 0;
  for (const Json& t : goldens()["templates"]) {
    const auto chat_template = ChatTemplate::parse(t["source"].get<std::string>(), t["name"]);
    for (const Json& want : t["renders"]) {
      expect_render(chat_template, all.at(want["chat"]),
                    options(t["specials"], want["add_generation_prompt"]), want);
      ++renders;
    }
  }
  EXPECT_EQ(renders, 21u * 57 * 2);
}

// A small template over given variables.
std::string render(const std::string& source, const Json& kwargs = nullptr) {
  Conversation chat;
  chat.messages = Json::array();
  chat.kwargs = kwargs;
  RenderOptions how;
  how.now = sunday();
  return ChatTemplate::parse(source, "t").render(chat, how).text;
}

std::string error_of(const std::string& source, const Json& kwargs = nullptr) {
  try {
    const std::string text = render(source, kwargs);
    ADD_FAILURE() << source << " renders " << text.substr(0, 200);
  } catch (const TemplateError& e) {
    return e.what();
  }
  return "";
}

TEST(TextTemplate, WhiteSpaceControl) {
  EXPECT_EQ(render("a\n  {% if true %}\n  b\n  {% endif %}\nc\n"), "a\n  b\nc");
  EXPECT_EQ(render("a {%- if true -%} \n b {%- endif %} c"), "ab c");
  EXPECT_EQ(render("  {%+ if true +%}\nb{% endif %}"), "  \nb");
  EXPECT_EQ(render("a\n{# c #}\nb {#- d -#} \n e"), "a\nbe");
  EXPECT_EQ(render("{{ 'x' -}}  \n  y {{- 'z' }}"), "xyz");
  EXPECT_EQ(render("{% raw %}{{ x }}{% if %}{% endraw %}|"), "{{ x }}{% if %}|");
  EXPECT_EQ(render("a\r\nb\rc\n\n"), "a\nb\nc\n");
  EXPECT_EQ(render("x {% if true %}y{% endif %}"), "x y");
}

TEST(TextTemplate, ValuesPrintAsPython) {
  EXPECT_EQ(render("{{ [1, 2.0, 1e-07, 1e16, 123456789.125, none, true, 'it\\'s', \"a\\\"b\\n\"] }}"),
            "[1, 2.0, 1e-07, 1e+16, 123456789.125, None, True, \"it's\", 'a\"b\\n']");
  EXPECT_EQ(render("{{ {'a': (1,), 'b': ()} }}{{ missing }}{{ none }}"), "{'a': (1,), 'b': ()}None");
  EXPECT_EQ(render("{{ 9007199254740993 * 9007199254740993 }}"), "81129638414606699710187514626049");
  EXPECT_EQ(render("{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 4 / 2 }}"),
            "3 -4 2 3.5 1024 2.0");
  EXPECT_EQ(render("{{ x | tojson }}", {{"x", {{"k", {1, 2.5, nullptr, "é\"<\u2028"}}}}}),
            "{\"k\": [1, 2.5, null, \"é\\\"<\u2028\"]}");
  EXPECT_EQ(render("{{ x | tojson(indent=2) }}", {{"x", {{"k", {1}}, {"e", Json::array()}}}}),
            "{\n  \"k\": [\n    1\n  ],\n  \"e\": []\n}");
  EXPECT_EQ(render("{{ 'é👩' | tojson(ensure_ascii=True) }}"), "\"\\u00e9\\ud83d\\udc69\"");
  EXPECT_EQ(render("{{ '\\x41\\u00e9\\t|\\q' }}"), "Aé\t|\\q");
}

TEST(TextTemplate, Expressions) {
  EXPECT_EQ(render("{{ 1 if false }}|{{ 'a' 'b' }}|{{ 1 < 2 < 3 }}|{{ 'b' in 'abc' }}|{{ 2 not in [1] }}"),
            "|ab|True|True|True");
  EXPECT_EQ(
      render("{{ 'héllo'[1:3] }} {{ 'abc'[::-1] }} {{ [1,2,3][-2:] }} {{ 'x' ~ 1 ~ none }} {{ 'ab' * 2 }}"),
      "él cba [2, 3] x1None abab");
  EXPECT_EQ(
      render(
          "{{ not a is defined and true }} {{ 3 is divisibleby 3 }} {{ 'A' is upper }} {{ x.y is defined }}",
          {{"x", Json::object()}}),
      "True True True False");
  EXPECT_EQ(render("{{ {'a': {'b': {}}}.a.b }}"), "{}");
  EXPECT_EQ(render("{{ -2 ** 2 }} {{ 1 - -1 }} {{ 'a' if none else 'b' if false else 'c' }}"), "4 2 c");
  EXPECT_EQ(render("{% set a, b = 1, (2, 3) %}{{ a }}{{ b[1] }}"), "13");
  EXPECT_EQ(render("{{ x.items is defined }}{{ x['items'] }}", {{"x", {{"items", 5}}}}), "True5");
}

TEST(TextTemplate, StatementsAndScopes) {
  EXPECT_EQ(render("{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}"),
            "231");
  EXPECT_EQ(
      render(
          "{% set n = namespace(x=1) %}{% for i in range(3) %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}"),
      "4");
  EXPECT_EQ(render("{% for i in range(9) if i % 2 %}{% if i == 7 %}{% break %}{% elif i == 3 %}{% continue "
                   "%}{% endif %}"
                   "{{ i }}{{ loop.index }}{{ loop.length }}{{ loop.last }} {% else %}none{% endfor %}"),
            "114False 534False ");
  EXPECT_EQ(render("{% for i in [] %}{% else %}none{% endfor %}"), "none");
  EXPECT_EQ(render("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"), "a1");
  EXPECT_EQ(render("{% for c in 'né' %}{{ loop.previtem }}{{ c }}{{ loop.nextitem }};{% endfor %}"),
            "né;né;");
  EXPECT_EQ(render("{% macro f(a, b=a ~ '!') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{% set c = 9 %}{{ f(1) "
                   "}}{{ f(1, b=2) }}"),
            "11!9129");
  EXPECT_EQ(
      render("{% set t %}a{{ 1 }}{% endset %}{{ t }}{% filter upper | replace('B', 'c') %}ab{% endfilter %}"),
      "a1Ac");
  EXPECT_EQ(render("{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}"), "3");
  EXPECT_EQ(render("{{ strftime_now('%d %B %Y') }}"), "09 March 2025");
}

TEST(TextTemplate, FiltersAndMethods) {
  EXPECT_EQ(
      render(
          "{{ ['b', 'A', 'a'] | unique | join(',') }} {{ [3,1] | sort }} {{ {'b': 1, 'A': 2} | dictsort }}"),
      "b,A [1, 3] [('A', 2), ('b', 1)]");
  EXPECT_EQ(render("{{ x | selectattr('r', 'equalto', 'u') | map(attribute='c') | list }}"
                   "{{ x | rejectattr('r') | list | length }}{{ [0, 1] | select | list }}{{ [1, 2] | "
                   "map('string') | join }}",
                   {{"x", {{{"r", "u"}, {"c", 1}}, {{"r", "a"}, {"c", 2}}}}}),
            "[1]0[1]12");
  EXPECT_EQ(render("{{ 'a\\n\\nb' | indent(2) }}|{{ 'a\\nb' | indent(1, true) }}"), "a\n\n  b| a\n b");
  EXPECT_EQ(render("{{ ' \\u00a0x\\x1f ' | trim }}|{{ 'xxaxx'.strip('x') }}|{{ '//a'.lstrip('/') }}"),
            "x|a|a");
  EXPECT_EQ(render("{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a b c'.split(' ', 1) }}{{ "
                   "'a.b.c'.rsplit('.', 1) }}"),
            "['a', 'b', '', 'c']['a', 'b']['a', 'b c']['a.b', 'c']");
  EXPECT_EQ(render("{{ 'aXbX'.replace('X', '-', 1) }} {{ 'hello world'.title() }} {{ 'HELLO' | capitalize }} "
                   "{{ 'ß'.upper() }}"),
            "a-bX Hello World Hello SS");
  EXPECT_EQ(
      render("{{ none | default('d') }}{{ none | default('d', true) }}{{ q | default }}|{{ '3' | int + 1 }}"),
      "Noned|4");
  EXPECT_EQ(render("{{ 'abc'.startswith(('x', 'a')) }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.get('b') }}"),
            "True2None");
}

TEST(TextTemplate, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("a\n\n{{ x.y }}"), "t: line 3: 'x' is undefined");
  EXPECT_NE(error_of("\n{{ 'a' | nofilter }}").find("line 2: no filter named 'nofilter'"), std::string::npos);
  EXPECT_NE(error_of("{{ 1 is nothing }}").find("no test named"), std::string::npos);
  EXPECT_NE(error_of("{% include 'x' %}").find("tag 'include' is not supported"), std::string::npos);
  EXPECT_NE(error_of("{% if x %}").find("endif"), std::string::npos);
  EXPECT_NE(error_of("{% endfor %}").find("endfor"), std::string::npos);
  EXPECT_NE(error_of("{% break %}").find("outside of a loop"), std::string::npos);
  EXPECT_NE(error_of("{{ [].append(1) }}").find("not supported"), std::string::npos);
  EXPECT_EQ(error_of("{{ raise_exception('two\nlines') }}"), "t: line 1: two lines");
  EXPECT_NE(error_of("{{ 'a' + 1 }}").find("can only concatenate str (not \"int\") to str"),
            std::string::npos);
}

TEST(TextTemplate, NothingRunsOrGrowsWithoutEnd) {
  for (const std::string source :
       {"{% macro f() %}{{ f() }}{% endmacro %}\n{{ f() }}", "{{ range(10**9) }}", "{{ 'a' * 10**12 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x "
        "}}",
        "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 1000 }}{% "
        "endfor %}",
        "{{ 2 ** 200 }}", "{{ 10**30 * 10**30 }}", "{{ [1,2,3] | tojson(indent=10**9) }}",
        "{{ 'ab'.replace('', 'x' * 10**7).replace('', 'x' * 10**7) }}"})
    EXPECT_FALSE(error_of(source).empty()) << source;
  std::string deep = "{{ ";
  for (int i = 0; i < 100000; ++i) deep += "(";
  EXPECT_NE(error_of(deep + std::string(100000, ')') + " }}").find("deeply"), std::string::npos);
  deep = "{{ 1";
  for (int i = 0; i < 100000; ++i) deep += " + 1";
  EXPECT_FALSE(error_of(deep + " }}").empty());
  deep.clear();
  for (int i = 0; i < 100000; ++i) deep += "{% if 1 %}";
  EXPECT_FALSE(error_of(deep).empty());
  // Namespaces and loops that hold themselves are let go.
  EXPECT_EQ(
      render("{% set n = namespace() %}{% set n.n = n %}{% for i in [n] %}{% set n.l = loop %}{% endfor %}x"),
      "x");
}

TEST(TextTemplate, TruncatedTemplatesNeverCrash) {
  const auto all = chats();
  const Conversation& chat = all.at("tool_use_system");
  size_t parsed = 0;
  for (const Json& t : goldens()["templates"]) {
    const auto source = t["source"].get<std::string>();
    for (size_t cut = 0; cut < source.size(); cut += 7) {
      try {
        const auto chat_template = ChatTemplate::parse(source.substr(0, cut), "cut");
        ++parsed;
        chat_template.render(chat, options(t["specials"], true));
      } catch (const Error& e) {
        EXPECT_EQ(e.category(), Category::input);
      }
    }
  }
  EXPECT_GT(parsed, 50u);
}

TEST(TextTemplate, MangledTemplatesNeverCrash) {
  const auto all = chats();
  const Conversation& chat = all.at("tool_use_system");
  uint32_t state = 1;
  const auto random = [&](size_t n) { return (state = state * 1664525 + 1013904223, state >> 8) % n; };
  for (const Json& t : goldens()["templates"]) {
    for (int round = 0; round < 60; ++round) {
      auto source = t["source"].get<std::string>();
      for (int edit = 0; edit < 3; ++edit) {
        const size_t at = random(source.size()), length = random(12);
        if (random(2))
          source.erase(at, length);
        else
          source.insert(random(source.size()), source.substr(at, length));
      }
      try {
        ChatTemplate::parse(source, "mangled").render(chat, options(t["specials"], true));
      } catch (const Error& e) {
        EXPECT_EQ(e.category(), Category::input);
      }
    }
  }
}

TEST(TextTemplate, ContentIsTold) {
  Conversation chat;
  chat.messages = Json::parse(
      R"([{"role": "user", "content": "  one two "}, {"role": "assistant", "content": "three"}])");
  const auto t = ChatTemplate::parse(
      "{% for m in messages %}<{{ m.role }}>{{ (m.content | trim).replace('two', '2') ~ '!' }}{% endfor %}"
      "{% set x %}{% generation %}{{ messages[1].content[1:] }}{% endgeneration %}{% endset %}({{ x }}){{ "
      "messages[0] | tojson }}",
      "t");
  const Rendered out = t.render(chat, {});
  EXPECT_EQ(out.text, "<user>one 2!<assistant>three!(hree){\"role\": \"user\", \"content\": \"  one two \"}");
  ASSERT_EQ(out.generation.size(), 1u);
  EXPECT_EQ(out.text.substr(out.generation[0].begin, out.generation[0].end - out.generation[0].begin),
            "hree");
  std::vector<std::pair<std::string, int>> parts;
  for (const ContentRange& r : out.content)
    parts.emplace_back(out.text.substr(r.begin, r.end - r.begin), r.message);
  EXPECT_EQ(parts, (std::vector<std::pair<std::string, int>>{{"user", -1},
                                                             {"one ", 0},
                                                             {"assistant", -1},
                                                             {"three", 1},
                                                             {"hree", 1},
                                                             {"\"user\"", -1},
                                                             {"\"  one two \"", 0}}));
}

TEST(TextTemplate, WhereTemplatesComeFrom) {
  test::TempFolder folder;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder / name) << text;
  };
  EXPECT_TRUE(load_chat_templates(folder.path()).empty());
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})");
  EXPECT_EQ(load_chat_templates(folder.path()).pick(false).source(), "d");
  EXPECT_EQ(load_chat_templates(folder.path()).pick(true).source(), "t");
  write("chat_template.jinja", "file");
  EXPECT_EQ(load_chat_templates(folder.path()).pick(false).source(), "file");
  write("tokenizer_config.json", R"({"chat_template": "key"})");
  EXPECT_EQ(load_chat_templates(folder.path()).pick(true).source(), "file");
  std::filesystem::remove(folder / "chat_template.jinja");
  EXPECT_EQ(load_chat_templates(folder.path()).pick(true).source(), "key");
  write("tokenizer_config.json", R"({"chat_template": "key", "chat_template": "again"})");
  EXPECT_THROW(load_chat_templates(folder.path()), Error);
  EXPECT_THROW(ChatTemplates{}.pick(false), Error);
  write("mine.jinja", "mine");
  EXPECT_EQ(find_chat_template(folder / "mine.jinja").source(), "mine");
  EXPECT_THROW(find_chat_template("no-such-template"), Error);
}

TEST(TextTemplate, Builtins) {
  const auto chat = Conversation::from_json(
      Json::parse(
          R"([{"role": "user", "content": "Hi", "input": "in"}, {"role": "assistant", "content": "Yo"}])"),
      "c");
  RenderOptions how;
  how.specials = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  EXPECT_EQ(find_chat_template("chatml").render(chat, how).text,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n");
  EXPECT_EQ(
      find_chat_template("alpaca").render(chat, how).text,
      "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
      "Write "
      "a response that appropriately completes the request.\n\n### Instruction:\nHi\n\n### Input:\nin\n\n### "
      "Response:Yo</s>");
  EXPECT_EQ(find_chat_template("llama3").render(chat, how).text,
            "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_"
            "header_id|>\n\n"
            "Yo<|eot_id|>");
}

}  // namespace
}  // namespace qlora
