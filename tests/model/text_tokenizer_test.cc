#include "model/text/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "memory/error.h"
#include "model/text/unicode.h"
#include "tests/support/golden.h"
#include "tests/support/temp_folder.h"

// SmolLM2's tokenizer against what the tokenizers library gives for 840 texts.
namespace qlora {
namespace {

using Json = nlohmann::ordered_json;
using test::lines;
using test::unxz_golden;

void write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

const std::string& smollm2_json() {
  static const std::string text = unxz_golden("text/smollm2.tokenizer.json.xz");
  return text;
}

std::unique_ptr<Tokenizer> from_text(const std::string& text) {
  test::TempFolder folder;
  write(folder / "tokenizer.json", text);
  return Tokenizer::from_json(folder / "tokenizer.json");
}

const Tokenizer& smollm2() {
  static const auto tokenizer = [] {
    test::TempFolder folder;
    write(folder / "tokenizer.json", smollm2_json());
    write(folder / "tokenizer_config.json", test::read_golden("text/smollm2.tokenizer_config.json"));
    return Tokenizer::from_folder(folder.path());
  }();
  return *tokenizer;
}

GgufTokenizerData smollm2_gguf() {
  const auto file = nlohmann::json::parse(smollm2_json());  // looks keys up fast
  GgufTokenizerData data;
  data.path = "model.gguf";
  data.model = "gpt2";
  data.pre = "smollm";
  const auto& vocabulary = file["model"]["vocab"];
  data.tokens.resize(vocabulary.size());
  data.token_type.assign(vocabulary.size(), 1);
  for (const auto& [text, id] : vocabulary.items()) data.tokens[id.get<size_t>()] = text;
  for (const auto& token : file["added_tokens"]) data.token_type[token["id"].get<size_t>()] = 3;
  for (const auto& merge : file["model"]["merges"])
    data.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  data.bos_id = 1, data.eos_id = 2, data.unk_id = 0, data.pad_id = 2;
  return data;
}

void expect_all_cases(const Tokenizer& tokenizer) {
  const auto cases = lines(unxz_golden("text/cases.jsonl.xz"));
  const auto rows = lines(unxz_golden("text/smollm2.ids.jsonl.xz"));
  ASSERT_EQ(cases.size(), 840u);
  ASSERT_EQ(rows.size(), cases.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string text = Json::parse(cases[i])["text"];
    const Json row = Json::parse(rows[i]);
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text), ids) << "case " << i;
    EXPECT_EQ(tokenizer.encode(text, false), row["plain"].get<std::vector<int32_t>>()) << "case " << i;
    EXPECT_EQ(tokenizer.decode(ids), row["decoded"].get<std::string>()) << "case " << i;
    EXPECT_EQ(tokenizer.decode(ids, true), row["decoded_skip"].get<std::string>()) << "case " << i;
    // The spans tile the text but for bytes that the vocabulary lacks, and name the bytes of their tokens.
    size_t at = 0;
    for (const TokenSpan& s : tokenizer.encode_spans(text)) {
      EXPECT_GE(s.begin, at);
      EXPECT_EQ(tokenizer.token_bytes(s.id), std::string_view(text).substr(s.begin, s.end - s.begin));
      at = s.end;
    }
  }
}

TEST(TextTokenizer, JsonGivesTheReferenceIds) { expect_all_cases(smollm2()); }

TEST(TextTokenizer, GgufGivesTheReferenceIds) { expect_all_cases(*Tokenizer::from_gguf(smollm2_gguf())); }

TEST(TextTokenizer, SavedGgufIsTheSameTokenizer) {
  GgufTokenizerData data = smollm2_gguf();
  data.add_bos = true;
  data.add_eos = true;
  const auto original = Tokenizer::from_gguf(data);
  test::TempFolder folder;
  original->save(folder.path());
  const auto again = Tokenizer::from_folder(folder.path());
  EXPECT_EQ(again->named_specials(), original->named_specials());
  EXPECT_EQ(again->encode("Hi 2024 <|im_end|>"), original->encode("Hi 2024 <|im_end|>"));
  const auto ids = again->encode("Hi");
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 26843, 2}));
  // and it can be saved again, byte for byte
  test::TempFolder copy;
  again->save(copy.path());
  std::ifstream a(folder / "tokenizer.json"), b(copy / "tokenizer.json");
  EXPECT_TRUE(std::equal(std::istreambuf_iterator<char>(a), {}, std::istreambuf_iterator<char>(b), {}));
}

TEST(TextTokenizer, Lookups) {
  const Tokenizer& t = smollm2();
  EXPECT_EQ(t.vocab_size(), 49152);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.pad_id(), 2);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_EQ(t.named_specials().at("eos_token"), "<|im_end|>");
  EXPECT_EQ(t.token_to_id("Ġthe"), 260);
  EXPECT_EQ(t.id_to_token(260), "Ġthe");
  EXPECT_EQ(t.token_bytes(260), " the");
  EXPECT_EQ(t.token_to_id("no such token"), std::nullopt);
  EXPECT_EQ(t.id_to_token(49152), "");
  EXPECT_EQ(t.id_to_token(-1), "");
  EXPECT_TRUE(t.is_special(2));
  EXPECT_FALSE(t.is_special(260));
  EXPECT_EQ(t.decode(std::vector<int32_t>{-5, 19556, 1 << 30}), "Hello");
}

TEST(TextTokenizer, SpecialTokensInTextAreTextWhereTheyShouldBe) {
  const Tokenizer& t = smollm2();
  const std::string text = "a<|im_end|>b<|im_end|>";
  EXPECT_EQ(t.encode(text), (std::vector<int32_t>{81, 2, 82, 2}));
  const auto plain = t.encode(text, true, false);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 2), 0);
  EXPECT_EQ(t.decode(plain), text);
  // Only the first is someone's; a range that touches one byte of it is enough.
  for (const ByteRange range : {ByteRange{0, 12}, ByteRange{10, 11}, ByteRange{1, 2}}) {
    const auto spans = t.encode_spans(text, false, std::span(&range, 1));
    EXPECT_EQ(std::count_if(spans.begin(), spans.end(), [](const TokenSpan& s) { return s.id == 2; }), 1);
    EXPECT_EQ(spans.back(), (TokenSpan{2, 12, 22}));
  }
  // What is passed over does not hide what begins inside it.
  const ByteRange open{0, 4};
  const auto spans = t.encode_spans("<|im<|im_end|>", false, std::span(&open, 1));
  EXPECT_EQ(spans.back().id, 2);
}

TEST(TextTokenizer, StreamingEndsBetweenCharacters) {
  const Tokenizer& t = smollm2();
  const std::string text = "naïve 👩‍👩‍👧 日本語 <|im_end|>";
  StreamDecoder stream(t);
  std::string out;
  for (const int32_t id : t.encode(text)) {
    const std::string part = stream.push(id);
    EXPECT_EQ(unicode::first_invalid(part), std::string::npos);
    EXPECT_EQ(part.find("\xEF\xBF\xBD"), std::string::npos);
    out += part;
  }
  EXPECT_EQ(out + stream.finish(), "naïve 👩‍👩‍👧 日本語 ");
  StreamDecoder broken(t);
  const auto ids = t.encode("👩");
  ASSERT_GT(ids.size(), 1u);
  EXPECT_EQ(broken.push(ids[0]), "");
  EXPECT_EQ(broken.finish(), "\xEF\xBF\xBD");
}

TEST(TextTokenizer, LongWordsMergeAsShortOnes) {
  const Tokenizer& t = smollm2();
  // One word of 60,000 letters: the heap; its parts between two equal cuts merge as they would alone.
  std::string word;
  for (int i = 0; i < 10000; ++i) word += "merges";
  const auto ids = t.encode(word);
  EXPECT_EQ(t.decode(ids), word);
  const auto some = t.encode("mergesmergesmergesmerges");
  EXPECT_TRUE(std::equal(ids.begin(), ids.begin() + 4, some.begin()));
}

TEST(TextTokenizer, InvalidUtf8IsAnError) {
  EXPECT_THROW(
      {
        try {
          smollm2().encode("ab\xC3(");
        } catch (const Error& e) {
          EXPECT_EQ(e.category(), Category::input);
          EXPECT_NE(std::string(e.what()).find("byte 2"), std::string::npos);
          throw;
        }
      },
      Error);
}

// A vocabulary of single bytes with a few words, to see one thing at a time.
Json small() {
  Json vocabulary = {{"Ġ", 0},   {"a", 1}, {"b", 2}, {"c", 3}, {"ab", 4},
                     {"abc", 5}, {"Ċ", 6}, {"1", 7}, {"Ġa", 8}};
  Json file = {{"added_tokens", Json::array()},
               {"normalizer", nullptr},
               {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
               {"decoder", {{"type", "ByteLevel"}}},
               {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", {"a b", "ab c", "Ġ a"}}}}};
  return file;
}

Json added(int id, const std::string& content) {
  return {{"id", id}, {"content", content}, {"special", true}};
}

using Ids = std::vector<int32_t>;

TEST(TextTokenizer, MergesInBothSpellings) {
  Json file = small();
  EXPECT_EQ(from_text(file.dump())->encode("abc ab"), (Ids{5, 0, 4}));
  file["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"})});
  EXPECT_EQ(from_text(file.dump())->encode("abc ab"), (Ids{5, 0, 4}));
}

TEST(TextTokenizer, IgnoreMerges) {
  Json file = small();
  file["model"]["merges"] = {"a b"};
  EXPECT_EQ(from_text(file.dump())->encode("abc"), (Ids{4, 3}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(from_text(file.dump())->encode("abc"), (Ids{5}));
}

TEST(TextTokenizer, BytesOutsideOfTheVocabulary) {
  Json file = small();
  EXPECT_EQ(from_text(file.dump())->encode("aéb"), (Ids{4}));  // left out, the neighbours merge
  file["model"]["vocab"]["?"] = 9;
  file["model"]["unk_token"] = "?";
  EXPECT_EQ(from_text(file.dump())->encode("aéb"), (Ids{1, 9, 9, 2}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(from_text(file.dump())->encode("aéb"), (Ids{1, 9, 2}));
}

// The small tokenizer, which has other tokens for the same words, makes the thread forget those of the large
// one.
TEST(TextTokenizer, WordsSeenBeforeHaveTheirTokens) {
  const Tokenizer& large = smollm2();
  const auto other = from_text(small().dump());
  std::mt19937 random(7);
  std::string text;
  std::vector<TokenSpan> alone;
  for (int i = 0; i < 4000; ++i) {
    std::string word = i == 0 ? "" : " ";
    // Short ones come again, long ones are too long to be remembered, é is two bytes.
    for (size_t n = 1 + random() % (i % 2 == 0 ? 3 : 20); n > 0; --n)
      word += random() % 16 == 0 ? "é" : std::string(1, static_cast<char>('a' + random() % 26));
    other->encode(word);
    for (TokenSpan s : large.encode_spans(word)) {
      s.begin += static_cast<uint32_t>(text.size());
      s.end += static_cast<uint32_t>(text.size());
      alone.push_back(s);
    }
    text += word;
  }
  EXPECT_TRUE(large.encode_spans(text) == alone);
  EXPECT_TRUE(large.encode_spans(text) == alone) << "when every word is known";
}

TEST(TextTokenizer, WordsSeenBeforeKeepTheirGaps) {
  const auto t = from_text(small().dump());  // has no é
  for (const char* word : {"é", "éab", "abé", "cécécéb"}) {
    const auto first = t->encode_spans(word);
    EXPECT_EQ(t->encode_spans(word), first) << word;
    EXPECT_EQ(t->encode_spans(word), first) << word;
  }
}

TEST(TextTokenizer, AddedTokens) {
  Json file = small();
  file["added_tokens"] = {added(10, "<x>"), added(11, "<x><y>"), added(12, "word"), added(13, "<l>"),
                          added(14, "<r>")};
  file["added_tokens"][2]["single_word"] = true;
  file["added_tokens"][3]["lstrip"] = true;
  file["added_tokens"][4]["rstrip"] = true;
  const auto t = from_text(file.dump());
  EXPECT_EQ(t->encode("<x><x><y>a"), (Ids{10, 11, 1}));  // leftmost, longest
  EXPECT_EQ(t->encode("word"), (Ids{12}));
  EXPECT_EQ(t->encode("aword"), (Ids{1}));  // w, o, r, d are no tokens here
  EXPECT_EQ(t->encode("wordé"), (Ids{}));   // é is \w
  EXPECT_EQ(t->encode("a word\n"), (Ids{1, 0, 12, 6}));
  EXPECT_EQ(t->encode_spans("a \n<l> b"),
            (std::vector<TokenSpan>{{1, 0, 1}, {13, 1, 6}, {0, 6, 7}, {2, 7, 8}}));
  EXPECT_EQ(t->encode_spans("a <r> \nb"),
            (std::vector<TokenSpan>{{1, 0, 1}, {0, 1, 2}, {14, 2, 7}, {2, 7, 8}}));
  EXPECT_EQ(t->encode("<r>  <l>"), (Ids{14, 13}));
}

TEST(TextTokenizer, PrefixSpaceAndSpans) {
  Json file = small();
  file["pre_tokenizer"]["add_prefix_space"] = true;
  const auto t = from_text(file.dump());
  EXPECT_EQ(t->encode_spans("ab"), (std::vector<TokenSpan>{{0, 0, 0}, {4, 0, 2}}));  // a b merges first
  EXPECT_EQ(t->encode(" a"), (Ids{8}));
}

TEST(TextTokenizer, TemplateProcessing) {
  Json file = small();
  file["added_tokens"] = {added(10, "<s>"), added(11, "</s>")};
  file["post_processor"] = Json::parse(R"({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "</s>", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [10], "tokens": ["<s>"]},
                       "</s>": {"id": "</s>", "ids": [11], "tokens": ["</s>"]}}}]})");
  const auto t = from_text(file.dump());
  EXPECT_EQ(t->encode("a"), (Ids{10, 1, 11}));
  EXPECT_EQ(t->encode("a", false), (Ids{1}));
  EXPECT_EQ(t->encode(""), (Ids{10, 11}));
  EXPECT_EQ(t->encode_spans("a").back(), (TokenSpan{11, 1, 1}));
  EXPECT_EQ(t->decode(t->encode("a"), true), "a");
}

void expect_refused(const Json& file, const std::string& part) {
  try {
    from_text(file.dump());
    ADD_FAILURE() << "accepted, wanted: " << part;
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::input);
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("tokenizer.json"), std::string::npos) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
  }
}

template <class Change>
void expect_refused_after(Change change, const std::string& part) {
  Json file = small();
  change(file);
  expect_refused(file, part);
}

TEST(TextTokenizer, WhatIsNotUnderstoodIsRefusedByName) {
  expect_refused_after([](Json& f) { f["normalizer"] = {{"type", "NFC"}}; }, "normalizer 'NFC'");
  expect_refused_after([](Json& f) { f["pre_tokenizer"] = {{"type", "Metaspace"}}; }, "'Metaspace'");
  expect_refused_after([](Json& f) { f["pre_tokenizer"] = nullptr; }, "pre_tokenizer");
  expect_refused_after([](Json& f) { f["model"]["type"] = "Unigram"; }, "'Unigram'");
  expect_refused_after([](Json& f) { f["model"]["byte_fallback"] = true; }, "byte_fallback");
  expect_refused_after([](Json& f) { f["model"]["dropout"] = 0.1; }, "dropout");
  expect_refused_after([](Json& f) { f["decoder"] = {{"type", "WordPiece"}}; }, "'WordPiece'");
  expect_refused_after(
      [](Json& f) {
        f["post_processor"] = {{"type", "BertProcessing"}};
      },
      "'BertProcessing'");
}

TEST(TextTokenizer, DamagedFiles) {
  expect_refused_after([](Json& f) { f["model"]["merges"].push_back("a z"); }, "merge 3: \"z\"");
  expect_refused_after([](Json& f) { f["model"]["merges"].push_back("b c"); }, "\"bc\"");
  expect_refused_after([](Json& f) { f["model"]["merges"].push_back("bc"); }, "\"bc\"");
  expect_refused_after([](Json& f) { f["model"]["merges"].push_back({"a"}); }, "two tokens");
  expect_refused_after([](Json& f) { f["model"]["vocab"]["z"] = 1 << 30; }, "\"z\" has id 1073741824");
  expect_refused_after([](Json& f) { f["model"]["vocab"]["z"] = -1; }, "-1");
  expect_refused_after([](Json& f) { f["model"]["vocab"]["z"] = 1; }, "id 1 belongs to");
  expect_refused_after([](Json& f) { f["model"]["vocab"]["z"] = 1.5; }, "not an integer");
  expect_refused_after([](Json& f) { f["added_tokens"] = {added(2, "a")}; }, "id 2 belongs to");
  expect_refused_after([](Json& f) { f["added_tokens"] = {added(20, "a")}; }, "two ids");
  expect_refused_after([](Json& f) { f["model"].erase("vocab"); }, "vocab");
  expect_refused_after([](Json& f) { f["model"] = 3; }, "vocab");
  expect_refused_after([](Json& f) { f = Json::array(); }, "not a JSON object");
  test::TempFolder folder;
  const std::string whole = small().dump();
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    write(folder / "tokenizer.json", whole.substr(0, cut));
    EXPECT_THROW(Tokenizer::from_json(folder / "tokenizer.json"), Error) << cut;
  }
  write(folder / "tokenizer.json", std::string(100000, '['));
  EXPECT_THROW(Tokenizer::from_json(folder / "tokenizer.json"), Error);
  EXPECT_THROW(Tokenizer::from_folder(folder / "nowhere"), Error);
}

TEST(TextTokenizer, DamagedGguf) {
  const auto refused = [](auto change) {
    GgufTokenizerData data;
    data.path = "m.gguf", data.model = "gpt2", data.pre = "gpt-2";
    data.tokens = {"a", "b", "ab"}, data.token_type = {1, 1, 1}, data.merges = {"a b"};
    EXPECT_EQ(Tokenizer::from_gguf(data)->encode("ab"), Ids{2});
    change(data);
    EXPECT_THROW(Tokenizer::from_gguf(data), Error);
  };
  refused([](auto& d) { d.model = "llama"; });
  refused([](auto& d) { d.pre = "default"; });
  refused([](auto& d) { d.token_type.pop_back(); });
  refused([](auto& d) { d.tokens[1] = "a"; });
  refused([](auto& d) { d.merges = {"ab"}; });
  refused([](auto& d) { d.merges = {"a c"}; });
  refused([](auto& d) { d.bos_id = 3; });
  refused([](auto& d) { d.eos_id = -1; });
}

}  // namespace
}  // namespace qlora
