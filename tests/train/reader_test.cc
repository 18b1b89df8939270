#include "train/data/reader.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "memory/error.h"
#include "tests/support/temp_folder.h"

namespace qlora {
namespace {

constexpr int32_t kEos = 256, kOpen = 257, kClose = 258, kPair = 259, kVocab = 300;

// A tokenizer small enough to read: a token a byte, save that "th" is one token (so that tokens can
// straddle) and $ is EOS, and a template that writes kOpen, the role's first letter, the content and kClose.
class FakeEncoder : public RowEncoder {
 public:
  LossOn on = LossOn::assistant;
  bool has_eos = true;

  std::vector<TokenSpan> encode(std::string_view text) const override {
    std::vector<TokenSpan> out;
    for (uint32_t i = 0; i < text.size();) {
      const uint32_t n = text.substr(i, 2) == "th" ? 2 : 1;
      out.push_back({n == 2 ? kPair : text[i] == '$' ? kEos : static_cast<uint8_t>(text[i]), i, i + n});
      i += n;
    }
    return out;
  }
  EncodedChat encode_chat(const Conversation& chat) const override {
    EncodedChat out;
    size_t index = 0;
    for (const Json& m : chat.messages) {
      const std::string role = m["role"];
      if (role == "critic") fail(Category::input, "the template knows no critic");
      const bool answer = role == "assistant" && (on != LossOn::last || index + 1 == chat.messages.size());
      put(out, kOpen, false);
      put(out, role[0], false);
      for (const TokenSpan& s : encode(m["content"].get_ref<const std::string&>())) put(out, s.id, answer);
      put(out, kClose, answer);
      put(out, '\n', false);
      ++index;
    }
    return out;
  }
  std::vector<int32_t> encode_question(const Conversation& chat) const override {
    EncodedChat out = encode_chat(chat);
    out.ids.push_back(kOpen);
    out.ids.push_back('a');
    return out.ids;
  }
  LossOn loss_on() const override { return on; }
  std::optional<int32_t> eos() const override {
    return has_eos ? std::optional<int32_t>(kEos) : std::nullopt;
  }
  int64_t vocab() const override { return kVocab; }

 private:
  void put(EncodedChat& out, int32_t id, bool answer) const {
    out.ids.push_back(id);
    out.loss.push_back(answer || on == LossOn::all);
  }
};

const test::TempFolder& scratch() {
  static const test::TempFolder folder;
  return folder;
}
std::string file(const std::string& name, const std::string& text) { return scratch().write(name, text); }

// A sample for people: a token with loss is in upper case or, for the numbers, in brackets.
std::string shown(const Dataset& data, int64_t i) {
  std::string out;
  for (int64_t t = 0; t < data.length(i); ++t) {
    const int32_t id = data.ids(i)[t];
    const bool loss = data.has_loss(i)[t];
    if (id == kPair) out += loss ? "TH" : "th";
    if (id == kEos) out += loss ? "[E]" : "(e)";
    if (id == kOpen) out += loss ? "[<]" : "<";
    if (id == kClose) out += loss ? "[>]" : ">";
    if (id < 256) out += loss ? static_cast<char>(std::toupper(id)) : static_cast<char>(id);
  }
  return out;
}

Dataset read(const std::string& path, const ReadOptions& o = {}, LossOn loss_on = LossOn::assistant) {
  FakeEncoder encoder;
  encoder.on = loss_on;
  return read_dataset(DataRows(path), encoder, o);
}

std::vector<std::string> all(const Dataset& data) {
  std::vector<std::string> out;
  for (int64_t i = 0; i < data.size(); ++i) out.push_back(shown(data, i));
  return out;
}

// The error's line without the folder, after checking its category and that it is one line.
std::string error_of(const std::string& path, const ReadOptions& o = {}, int exit_code = 3) {
  try {
    read(path, o);
  } catch (const Error& e) {
    EXPECT_EQ(e.exit_code(), exit_code);
    std::string line = e.what();
    EXPECT_EQ(line.find('\n'), std::string::npos);
    const std::string prefix = scratch() / "";
    return line.rfind(prefix, 0) == 0 ? line.substr(prefix.size()) : line;
  }
  return "no error";
}

using Lines = std::vector<std::string>;

const char kTwoTurns[] =
    R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ab"},)"
    R"( {"role": "user", "content": "r"}, {"role": "assistant", "content": "cd"}]})";

TEST(Reader, Messages) {
  const std::string path = file("messages.jsonl", cat(kTwoTurns, "\n"));
  EXPECT_EQ(all(read(path)), (Lines{"<uq>\n<aAB[>]\n<ur>\n<aCD[>]\n"}));
  EXPECT_EQ(all(read(path, {}, LossOn::last)), (Lines{"<uq>\n<aab>\n<ur>\n<aCD[>]\n"}));
  EXPECT_EQ(all(read(path, {}, LossOn::all)), (Lines{"<UQ[>]\n[<]AAB[>]\n[<]UR[>]\n[<]ACD[>]\n"}));
}

TEST(Reader, ShareGpt) {
  EXPECT_EQ(
      all(read(file("sharegpt.jsonl",
                    R"({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},)"
                    R"( {"from": "gpt", "value": "ab"}]})"))),
      (Lines{"<ss>\n<uq>\n<aAB[>]\n"}));
}

TEST(Reader, Alpaca) {
  EXPECT_EQ(
      all(read(file("alpaca.jsonl", R"({"instruction": "do", "input": "it", "output": "ab"})"
                                    "\n"
                                    R"({"system": "s", "instruction": "do", "input": "", "output": "ab"})"))),
      (Lines{"<udo\nit>\n<aAB[>]\n", "<ss>\n<udo>\n<aAB[>]\n"}));
}

TEST(Reader, PromptCompletion) {
  // "th" stands over the border of the second row: the token holds a byte of the completion, so it has loss.
  const std::string path = file(
      "pc.jsonl", R"({"prompt": "q ", "completion": "ab"})"
                  "\n"
                  R"({"prompt": "wit", "completion": "hal"})"
                  "\n"
                  R"({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],)"
                  R"( "completion": [{"role": "assistant", "content": "ab"}]})");
  EXPECT_EQ(all(read(path)), (Lines{"q AB[E]", "wiTHAL[E]", "<uq>\n<ax>\n<aAB[>]\n"}));
  EXPECT_EQ(all(read(path, {}, LossOn::all)),
            (Lines{"q AB[E]", "wITHAL[E]", "<UQ[>]\n[<]AX[>]\n[<]AAB[>]\n"}));
}

// A letter, where the row above has a space: upper and lower case of that are one.
TEST(Reader, ThePromptsLastTokenHasNoLoss) {
  const std::string path = file("border.jsonl", R"({"prompt": "qr", "completion": "ab"})");
  EXPECT_EQ(all(read(path)), (Lines{"qrAB[E]"}));
}

TEST(Reader, TextGoesOn) {
  ReadOptions o;
  o.max_seq_length = 4;
  const Dataset data = read(file("text.jsonl", R"({"text": "abcdefg"})"
                                               "\n"
                                               R"({"text": "abcdefgh"})"
                                               "\n"
                                               R"({"text": ""})"
                                               "\n"
                                               R"({"text": "abc"})"),
                            o);
  // 8 tokens are two samples; 9 would leave the EOS alone, so it takes one of the sample before it. An empty
  // text is one EOS, which nothing predicts.
  EXPECT_EQ(all(data), (Lines{"aBCD", "eFG[E]", "aBCD", "eFG", "h[E]", "aBC[E]"}));
  const std::vector<uint64_t> places = {0, 4, 1ull << 32, (1ull << 32) + 4, (1ull << 32) + 7, 3ull << 32};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(data.place(i), places[i]);
  EXPECT_EQ(data.counts.rows, 4u);
  EXPECT_EQ(data.counts.continued, 3u);
  EXPECT_EQ(data.counts.dropped_unlabelled, 1u);
  EXPECT_EQ(data.counts.truncated, 0u);
}

TEST(Reader, EosOnce) {
  const std::string path = file("eos.jsonl", R"({"text": "ab$"})"
                                             "\n"
                                             R"({"text": "$"})"
                                             "\n"
                                             R"({"text": "a$b"})");
  EXPECT_EQ(all(read(path)), (Lines{"aB[E]", "a[E]B[E]"}));  // a lone EOS has no label
  EXPECT_EQ(all(read(file("eos_pc.jsonl", R"({"prompt": "q", "completion": "ab$"})"))), (Lines{"qAB[E]"}));
  FakeEncoder encoder;
  encoder.has_eos = false;
  EXPECT_THROW(read_dataset(DataRows(file("noeos.jsonl", R"({"text": "ab"})")), encoder, {}), Error);
}

TEST(Reader, Tokens) {
  EXPECT_EQ(all(read(file("tokens.jsonl", R"({"input_ids": [97, 98, 99], "labels": [-100, -100, 99]})"
                                          "\n"
                                          R"({"input_ids": [97, 98, 99], "labels": [97, 98, -100]})"
                                          "\n"
                                          R"({"input_ids": [97, 98, 99]})"))),
            (Lines{"abC", "aBc", "aBC"}));
  const auto broken = [](const std::string& row) { return error_of(file("tokens_bad.jsonl", row)); };
  EXPECT_EQ(broken(R"({"input_ids": [97, 300]})"),
            "tokens_bad.jsonl: line 1: 'input_ids'[1] is 300; the vocabulary has ids 0 to 299");
  EXPECT_NE(broken(R"({"input_ids": [97, -1]})").find("is -1;"), std::string::npos);
  EXPECT_NE(broken(R"({"input_ids": [97, 1e2]})").find("is 100.0;"), std::string::npos);
  EXPECT_NE(broken(R"({"input_ids": [97, 18446744073709551615]})").find("vocabulary"), std::string::npos);
  EXPECT_NE(broken(R"({"input_ids": []})").find("list of token ids"), std::string::npos);
  EXPECT_NE(broken(R"({"input_ids": [97, 98], "labels": [-100]})").find("as long as"), std::string::npos);
  EXPECT_NE(broken(R"({"input_ids": [97, 98], "labels": [-100, 97]})").find("its own token (98) or -100"),
            std::string::npos);
}

TEST(Reader, Overlong) {
  const std::string path = file("overlong.jsonl", cat(kTwoTurns, "\n",
                                                      R"({"messages": [)"
                                                      R"({"role": "assistant", "content": "a"}]})"));
  ReadOptions o;
  o.max_seq_length = 10;  // "<uq>\n<aAB[>]\n..." has its first label at 7
  Dataset data = read(path, o);
  EXPECT_EQ(all(data), (Lines{"<uq>\n<aAB[>]", "<aA[>]\n"}));
  EXPECT_EQ(data.counts.truncated, 1u);
  o.max_seq_length = 7;
  data = read(path, o);
  EXPECT_EQ(all(data), (Lines{"<aA[>]\n"}));
  EXPECT_EQ(data.counts.truncated, 1u);
  EXPECT_EQ(data.counts.dropped_unlabelled, 1u);
  EXPECT_EQ(said(data.counts),
            (Lines{"1 row cut to --max-seq-length", "1 row with every label masked dropped"}));
  EXPECT_EQ(data.place(0), 1ull << 32);
  o.overlong = Overlong::drop;
  data = read(path, o);
  EXPECT_EQ(data.counts.dropped_overlong, 1u);
  EXPECT_EQ(data.counts.truncated, 0u);
  o.overlong = Overlong::error;
  EXPECT_EQ(error_of(path, o),
            "overlong.jsonl: line 1: has 22 tokens, over --max-seq-length 7; raise it, or choose --overlong "
            "truncate "
            "or drop");
  o.overlong = Overlong::drop;
  o.max_seq_length = 2;
  EXPECT_NE(error_of(path, o).find("all 2 rows are longer"), std::string::npos);
  o.max_seq_length = 1;
  EXPECT_EQ(error_of(path, o, 2).rfind("--max-seq-length 1", 0), 0u);
}

TEST(Reader, RowsWithoutLabels) {
  const std::string masked = R"({"messages": [{"role": "user", "content": "q"}]})";
  const Dataset data = read(file("masked.jsonl", cat(masked, "\n", kTwoTurns, "\n")));
  EXPECT_EQ(data.size(), 1);
  EXPECT_EQ(data.counts.dropped_unlabelled, 1u);
  EXPECT_EQ(data.counts.rows, 2u);
  EXPECT_NE(error_of(file("all_masked.jsonl", cat(masked, "\n", masked)))
                .find("no label is left in any of its 2 rows"),
            std::string::npos);
  // A label on the very first token is none: nothing predicts it.
  EXPECT_NE(
      error_of(file("first.jsonl", R"({"input_ids": [97, 98], "labels": [97, -100]})")).find("no label"),
      std::string::npos);
}

TEST(Reader, OnlyNewlineEndsALine) {
  const Dataset data = read(file(
      "ends.jsonl", "\xef\xbb\xbf{\"text\": \"a\xe2\x80\xa8\xc2\x85z\"}\r\n \t\r\n\n{\"text\": \"bc\"}"));
  ASSERT_EQ(data.size(), 2);
  EXPECT_EQ(data.length(0), 8);
  EXPECT_EQ(data.counts.rows, 2u);
  EXPECT_EQ(data.place(1), 1ull << 32);
  EXPECT_EQ(data.sha256.size(), 64u);
}

TEST(Reader, BrokenLines) {
  const std::string good = "{\"text\": \"ab\"}\n";
  const auto third = [&](const std::string& line) {
    return error_of(file("bad.jsonl", good + "\n" + line + "\n" + good));
  };
  EXPECT_EQ(third("{\"text\": \"ab}"),
            "bad.jsonl: line 3: the JSON ends before it is complete; a row is one whole line");
  EXPECT_EQ(third("{\"text\": ab}"),
            "bad.jsonl: line 3: no valid JSON from byte 10 on; mend or remove the line");
  EXPECT_EQ(third("{\"text\": \"a\xff\"}"),
            "bad.jsonl: line 3: byte 12 is not UTF-8; save the file as UTF-8");
  EXPECT_NE(third("{\"text\": \"a\", \"text\": \"b\"}").find("bad.jsonl: line 3: the JSON key"),
            std::string::npos);
  EXPECT_NE(third("[1]").find("line 3: is [1], no JSON object"), std::string::npos);
  EXPECT_EQ(third("{\"test\": \"a\"}"),
            "bad.jsonl: line 3: has no 'text'; add it, or name the key with --columns text=KEY");
  EXPECT_EQ(third("{\"text\": 5}"), "bad.jsonl: line 3: 'text' is 5; it must be a string");
  EXPECT_NE(third(std::string(100000, '[')).find("line 3: JSON nested deeper"), std::string::npos);
  EXPECT_NE(third("{\"text\": \"\\ud800\"}").find("line 3: no valid JSON"), std::string::npos);
  EXPECT_NE(error_of(file("empty.jsonl", "")).find("holds no rows"), std::string::npos);
  EXPECT_NE(error_of(file("blank.jsonl", " \n\n")).find("holds no rows"), std::string::npos);
  EXPECT_NE(
      error_of(file("keys.jsonl", "{\"question\": \"a\"}")).find("the keys \"question\" are no known format"),
      std::string::npos);
  EXPECT_NE(error_of(file("roles.jsonl", R"({"messages": [{"content": "q"}]})")).find("'messages'[0]"),
            std::string::npos);
  EXPECT_EQ(error_of(file("critic.jsonl", R"({"messages": [{"role": "critic", "content": "q"}]})")),
            "critic.jsonl: line 1: the template knows no critic");
}

TEST(Reader, KindsThatAreNotRead) {
  for (const char* name : {"x.csv", "x.parquet", "x.jsonl.gz", "x.jsonl.zst"})
    EXPECT_NE(error_of(file(name, "x")).find("is not read yet"), std::string::npos) << name;
  EXPECT_NE(error_of(scratch().path()).find("folders"), std::string::npos);
  EXPECT_NE(error_of("org/name").find("hub"), std::string::npos);
  EXPECT_NE(error_of(file("w.jsonl", "{}") + ":0.5").find("weights"), std::string::npos);
  EXPECT_NE(error_of(file("noise", "hello")).find("neither JSON nor .txt"), std::string::npos);
}

TEST(Reader, JsonArrayAndText) {
  EXPECT_EQ(all(read(file("array.json", " [{\"text\": \"ab\"},\n {\"text\": \"c\"}]"))),
            (Lines{"aB[E]", "c[E]"}));
  EXPECT_EQ(all(read(file("lines.json", "{\"text\": \"ab\"}\n{\"text\": \"c\"}\n"))),
            (Lines{"aB[E]", "c[E]"}));
  EXPECT_NE(error_of(file("array_bad.json", "[{\"text\": \"ab\"}, 7]")).find("row 2: is 7"),
            std::string::npos);
  const std::string path = file("plain.txt", "a\nb\n\n \nc\n");
  const FakeEncoder encoder;
  const auto by = [&](SampleBy how) { return all(read_dataset(DataRows(path, how), encoder, {})); };
  EXPECT_EQ(by(SampleBy::line), (Lines{"a[E]", "b[E]", "c[E]"}));
  EXPECT_EQ(by(SampleBy::paragraph), (Lines{"a\nB[E]", "c[E]"}));
  EXPECT_EQ(by(SampleBy::document), (Lines{"a\nB\n\n \nC\n[E]"}));
  EXPECT_NE(error_of(file("bad.txt", "ab\nc\xff\n")).find("bad.txt: line 2: byte 4"), std::string::npos);
}

TEST(Reader, ColumnsAreNamed) {
  ReadOptions o;
  o.columns = Columns("prompt=question,completion=answer");
  EXPECT_EQ(all(read(file("columns.jsonl", R"({"question": "q", "answer": "a", "text": "no"})"), o)),
            (Lines{"qA[E]"}));
  EXPECT_NE(error_of(file("columns.jsonl", R"({"question": "q", "text": "no"})"), o)
                .find("line 1: has no 'answer', which --columns names as completion"),
            std::string::npos);
  // None is passed over: neither one that the rows' format does not have, told or found, nor one whose key is
  // nowhere. One of a few rows may lack it.
  const std::string rows = file("columns.jsonl", R"({"question": "q", "answer": "a", "text": "no"})");
  o.columns = Columns("prompt=question,completion=answer,text=text");
  EXPECT_EQ(error_of(rows, o, 2),
            "--columns text=text: rows of prompt-completion have no text; leave it out, or give another "
            "--dataset-format");
  o.format = DatasetFormat::text;
  EXPECT_NE(error_of(rows, o, 2).find("rows of text have no completion"), std::string::npos);
  const std::string ids =
      file("tokens.jsonl", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4], \"mask\": [-100, 4]}\n");
  o.format = DatasetFormat::tokens;
  o.columns = Columns("labels=mask");
  EXPECT_EQ(read(ids, o).size(), 2);
  o.columns = Columns("labels=mark");
  EXPECT_EQ(error_of(ids, o),
            "tokens.jsonl: no row has 'mark', which --columns names as labels; correct the name");
  EXPECT_THROW(Columns("question=prompt"), Error);
  EXPECT_THROW(Columns("prompt"), Error);
  EXPECT_THROW(Columns("prompt=a,prompt=b"), Error);
}

TEST(Reader, AnyNumberOfThreads) {
  std::string text;
  for (int i = 0; i < 2000; ++i) text += cat("{\"text\": \"row ", i, std::string(i % 37, 'x'), "\"}\n");
  const std::string path = file("many.jsonl", text);
  ReadOptions o;
  o.max_seq_length = 16;
  const Dataset one = read(path, o);
  for (const int threads : {2, 4, 13}) {
    o.threads = threads;
    const Dataset many = read(path, o);
    ASSERT_EQ(one.size(), many.size());
    EXPECT_EQ(all(one), all(many));
    for (int64_t i = 0; i < one.size(); ++i) EXPECT_EQ(one.place(i), many.place(i));
    EXPECT_EQ(one.counts.continued, many.counts.continued);
    EXPECT_EQ(many.counts.rows, 2000u);
  }
  // Of several broken rows the first is named, whatever thread meets its own first.
  text.insert(text.find("{\"text\": \"row 1500"), "{\n");
  text.insert(text.find("{\"text\": \"row 300x"), "{\n");
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(error_of(file("many_bad.jsonl", text), o).substr(0, 24), "many_bad.jsonl: line 301");
}

TEST(Reader, Questions) {
  const FakeEncoder encoder;
  const auto question = [&](const std::string& row) {
    const Json value = Json::parse(row);
    return question_of(value, format_of({}, value, {}, "r"), {}, encoder, "r");
  };
  Question q = question(kTwoTurns);
  EXPECT_EQ(q.wanted, "cd");
  const std::vector<int32_t> tail = {kOpen, 'u', 'r', kClose, '\n', kOpen, 'a'};
  EXPECT_TRUE(std::equal(tail.rbegin(), tail.rend(), q.prompt.rbegin()));
  q = question(R"({"prompt": "q", "completion": "ab"})");
  EXPECT_EQ(q.prompt, (std::vector<int32_t>{'q'}));
  EXPECT_EQ(q.wanted, "ab");
  EXPECT_THROW(question(R"({"text": "ab"})"), Error);
  EXPECT_THROW(question(R"({"messages": [{"role": "user", "content": "q"}]})"), Error);
}

}  // namespace
}  // namespace qlora
