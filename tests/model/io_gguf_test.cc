#include "model/io/gguf.h"

#include <random>

#include "model/io/gguf_tokenizer.h"
#include "tests/model/io_support.h"

namespace qlora {
namespace {

using io_test::bytes_of;
using io_test::expect_error;
using io_test::GgufBuilder;
using io_test::put;
using io_test::survives;
using io_test::TempFolder;

GgufBuilder every_type() {
  GgufBuilder b;
  b.raw("u8", 0, bytes_of<uint8_t>(200))
      .raw("i8", 1, bytes_of<int8_t>(-3))
      .raw("u16", 2, bytes_of<uint16_t>(60000));
  b.raw("i16", 3, bytes_of<int16_t>(-300)).u32("u32", 4000000000u).raw("i32", 5, bytes_of<int32_t>(-70000));
  b.f32("f32", 0.5f).raw("bool", 7, bytes_of<uint8_t>(1)).string("string", "text");
  b.raw("u64", 10, bytes_of<uint64_t>(uint64_t{1} << 40))
      .raw("i64", 11, bytes_of<int64_t>(-(int64_t{1} << 40)));
  b.raw("f64", 12, bytes_of<double>(0.1)).raw("huge", 10, bytes_of<uint64_t>(UINT64_MAX));
  b.strings("strings", {"a", "", "bc"}).array("floats", 6, 2, bytes_of(1.5f) + bytes_of(-2.0f));
  b.array("ints", 5, 2, bytes_of<int32_t>(7) + bytes_of<int32_t>(-7));
  b.tensor("m", {32, 2}, 3, std::string(40, 'x')).tensor("v", {3}, 0, std::string(12, 'y'));
  return b;
}

class Gguf : public ::testing::Test {
 protected:
  void refused(const std::string& bytes, std::initializer_list<std::string> words) {
    put(folder_ / "x.gguf", bytes);
    expect_error(Category::input, words, [&] { GgufFile f(folder_ / "x.gguf"); });
  }
  GgufFile open(const std::string& bytes) {
    put(folder_ / "x.gguf", bytes);
    return GgufFile(folder_ / "x.gguf");
  }
  TempFolder folder_;
};

TEST_F(Gguf, ReadsEveryType) {
  for (const uint32_t version : {2u, 3u}) {
    const GgufFile f = open(every_type().build(version));
    EXPECT_EQ(f.integer("u8", 0, 255), 200);
    EXPECT_EQ(f.integer("i8", -9, 9), -3);
    EXPECT_EQ(f.integer("u16", 0, 65535), 60000);
    EXPECT_EQ(f.integer("i16", -999, 0), -300);
    EXPECT_EQ(f.integer("u32", 0, INT64_MAX), 4000000000);
    EXPECT_EQ(f.integer("i32", -99999, 0), -70000);
    EXPECT_EQ(f.integer("u64", 0, INT64_MAX), int64_t{1} << 40);
    EXPECT_EQ(f.integer("i64", INT64_MIN, 0), -(int64_t{1} << 40));
    EXPECT_EQ(f.number("f32"), 0.5);
    EXPECT_EQ(f.number("f64"), 0.1);
    EXPECT_EQ(f.number("u8"), 200.0);
    EXPECT_EQ(f.boolean("bool"), true);
    EXPECT_EQ(f.string("string"), "text");
    EXPECT_EQ(f.strings("strings"), (std::vector<std::string>{"a", "", "bc"}));
    EXPECT_EQ(f.floats("floats"), (std::vector<float>{1.5f, -2.0f}));
    EXPECT_EQ(f.integers("ints"), (std::vector<int64_t>{7, -7}));
    EXPECT_EQ(f.integer("absent", 0, 1), std::nullopt);
    EXPECT_EQ(f.shown_value("strings"), "[3 string]");
    const GgufTensor* m = f.find("m");
    ASSERT_NE(m, nullptr);
    EXPECT_EQ(m->shape, (std::vector<int64_t>{2, 32}));
    EXPECT_EQ(m->bytes, 40u);
    EXPECT_EQ(static_cast<char>(f.data(*f.find("v"))[11]), 'y');
  }
}

TEST_F(Gguf, RefusesAnotherType) {
  const GgufFile f = open(every_type().build());
  expect_error(Category::input, {"string", "integer"}, [&] { f.integer("string", 0, 1); });
  expect_error(Category::input, {"u8", "possible"}, [&] { f.integer("u8", 0, 100); });
  expect_error(Category::input, {"huge"}, [&] { f.integer("huge", 0, INT64_MAX); });
  expect_error(Category::input, {"strings", "single"}, [&] { f.string("strings"); });
  expect_error(Category::input, {"u8", "array"}, [&] { f.integers("u8"); });
  expect_error(Category::input, {"floats", "integers"}, [&] { f.integers("floats"); });
  expect_error(Category::input, {"ints", "strings"}, [&] { f.strings("ints"); });
  expect_error(Category::input, {"u8"}, [&] { f.boolean("u8"); });
}

TEST_F(Gguf, TruncatedAtEveryByte) {
  const std::string whole = every_type().build();
  const size_t end = whole.size() - 20;  // the last tensor's 12 bytes are padded to 32
  for (size_t n = 0; n < end; ++n) {
    put(folder_ / "x.gguf", whole.substr(0, n));
    EXPECT_FALSE(survives([&] { GgufFile f(folder_ / "x.gguf"); })) << n;
  }
  EXPECT_EQ(open(whole.substr(0, end)).tensors().size(), 2u);
}

TEST_F(Gguf, CountsAndLengthsPastTheFile) {
  const GgufBuilder b = every_type();
  for (const uint64_t n : {UINT64_MAX, uint64_t{1} << 62, uint64_t{1} << 32, uint64_t{1000000}}) {
    refused(b.build(3, 2, n), {"do not fit"});
    refused(b.build(3, n, 1), {"do not fit"});
    refused(GgufBuilder().array("a", 8, n, "").build(), {"\"a\"", "pass the end"});
    refused(GgufBuilder().array("a", 12, n, "").build(), {"\"a\"", "pass the end"});
    refused(GgufBuilder().raw("a", 8, bytes_of(n)).build(), {"a string", "passes the end"});
  }
  refused("GGUF" + bytes_of<uint32_t>(3) + bytes_of<uint64_t>(0) + bytes_of<uint64_t>(1) +
              bytes_of(UINT64_MAX) + std::string(64, 'x'),
          {"a key", "limit"});
}

TEST_F(Gguf, VersionsAndMagic) {
  for (const uint32_t v : {0u, 1u, 4u, 0x03000000u}) refused(every_type().build(v), {"version"});
  refused("GGML" + std::string(100, '\0'), {"no GGUF"});
  refused("", {"magic"});
}

TEST_F(Gguf, NamesAndTypes) {
  refused(GgufBuilder().u32("a", 1).u32("a", 2).build(), {"\"a\"", "twice"});
  refused(GgufBuilder().tensor("a", {1}, 0, "1234").tensor("a", {1}, 0, "1234").build(), {"\"a\"", "twice"});
  refused(GgufBuilder().raw("a", 13, "12345678").build(), {"\"a\"", "unknown type"});
  refused(GgufBuilder().array("a", 9, 1, "12345678").build(), {"\"a\"", "array of type 9"});
  refused(GgufBuilder().tensor(std::string(64, 'n'), {1}, 0, "1234").build(), {"name", "limit"});
  EXPECT_EQ(open(GgufBuilder().tensor(std::string(63, 'n'), {1}, 0, "1234").build()).tensors().size(), 1u);
  refused(GgufBuilder().tensor("a", {1, 1, 1, 1, 1}, 0, "1234").build(), {"\"a\"", "dimensions"});
  refused(GgufBuilder().tensor("a", {1}, 99, "1234").build(), {"\"a\"", "type 99"});
  refused(GgufBuilder().tensor("a\n", {1}, 0, "1234").build(), {"control"});
}

TEST_F(Gguf, ShapesAndOffsets) {
  refused(GgufBuilder().tensor("a", {33, 2}, 3, std::string(40, 'x')).build(), {"\"a\"", "blocks of 32"});
  refused(GgufBuilder().tensor("a", {-32}, 3, std::string(20, 'x')).build(), {"\"a\"", "negative"});
  refused(GgufBuilder().tensor("a", {int64_t{1} << 32, int64_t{1} << 32}, 0, "1234").build(),
          {"\"a\"", "overflows"});
  refused(GgufBuilder().tensor("a", {int64_t{1} << 62, 4}, 0, "1234").build(), {"\"a\"", "overflows"});
  refused(GgufBuilder().tensor("a", {int64_t{1} << 62}, 0, "1234").build(), {"\"a\"", "overflows"});
  refused(GgufBuilder().tensor("a", {1000}, 0, "1234").build(), {"\"a\"", "pass the end"});
  refused(GgufBuilder().tensor("a", {1}, 0, "1234", 32).build(), {"\"a\"", "offset"});
  refused(GgufBuilder().tensor("a", {8}, 0, std::string(32, 'x')).tensor("b", {1}, 0, "1234", -32).build(),
          {"\"b\"", "offset"});
  for (const uint32_t alignment : {0u, 3u, 48u, 0x80000000u})
    refused(GgufBuilder().u32("general.alignment", alignment).tensor("a", {1}, 0, "1234").build(),
            {"general.alignment"});
  refused(GgufBuilder().string("general.alignment", "32").build(), {"general.alignment"});
}

TEST_F(Gguf, RandomMutations) {
  const std::string whole = every_type().build();
  std::mt19937 random(11);
  for (int i = 0; i < 4000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k <= static_cast<int>(random() % 3); ++k)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    survives([&] {
      const GgufFile f = open(bytes);
      for (const std::string& key : f.keys()) f.shown_value(key);
      for (const GgufTensor& t : f.tensors()) EXPECT_LE(t.offset + t.bytes, f.file().size());
      f.strings("strings");
      f.floats("floats");
      f.integers("ints");
    });
  }
}

GgufBuilder tokenizer_of(int types, int scores) {
  GgufBuilder b;
  b.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "smollm");
  b.strings("tokenizer.ggml.tokens", {"a", "b", "ab"}).strings("tokenizer.ggml.merges", {"a b"});
  std::string t, s;
  for (int i = 0; i < types; ++i) t += bytes_of<int32_t>(1);
  for (int i = 0; i < scores; ++i) s += bytes_of(0.5f);
  b.array("tokenizer.ggml.token_type", 5, static_cast<uint64_t>(types), t);
  b.array("tokenizer.ggml.scores", 6, static_cast<uint64_t>(scores), s);
  b.u32("tokenizer.ggml.bos_token_id", 1).raw("tokenizer.ggml.add_bos_token", 7, bytes_of<uint8_t>(1));
  b.u32("tokenizer.ggml.padding_token_id", UINT32_MAX);
  return b;
}

TEST_F(Gguf, TokenizerFields) {
  const GgufTokenizerData t = read_gguf_tokenizer(open(tokenizer_of(3, 3).build()));
  EXPECT_EQ(t.model, "gpt2");
  EXPECT_EQ(t.pre, "smollm");
  EXPECT_EQ(t.tokens, (std::vector<std::string>{"a", "b", "ab"}));
  EXPECT_EQ(t.merges, (std::vector<std::string>{"a b"}));
  EXPECT_EQ(t.token_type, (std::vector<int32_t>{1, 1, 1}));
  EXPECT_EQ(t.bos_id, 1);
  EXPECT_EQ(t.eos_id, std::nullopt);
  EXPECT_EQ(t.pad_id, std::nullopt);
  EXPECT_TRUE(t.add_bos);
  const auto refuse = [&](GgufBuilder b, std::initializer_list<std::string> words) {
    const GgufFile f = open(b.build());
    expect_error(Category::input, words, [&] { read_gguf_tokenizer(f); });
  };
  refuse(tokenizer_of(2, 3), {"token_type", "2 entries"});
  refuse(tokenizer_of(3, 2), {"scores", "2 entries"});
  refuse(tokenizer_of(3, 3).u32("tokenizer.ggml.eos_token_id", 3), {"eos_token_id", "3 tokens"});
  refuse(GgufBuilder().string("tokenizer.ggml.model", "gpt2"), {"absent"});
  refuse(
      GgufBuilder().string("tokenizer.ggml.model", "gpt2").array("tokenizer.ggml.tokens", 4, 1, bytes_of(1)),
      {"tokens", "strings"});
}

}  // namespace
}  // namespace qlora
