#include "model/io/safetensors.h"

#include <random>

#include "model/io/json.h"
#include "tests/model/io_support.h"

namespace qlora {
namespace {

using io_test::bytes_of;
using io_test::expect_error;
using io_test::put;
using io_test::safetensors;
using io_test::survives;
using io_test::TempFolder;

const char* const kGood =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("a":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"none":{"dtype":"I64","shape":[0,5],"data_offsets":[32,32]},)"
    R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[32,33]}})";

std::string good_file() {
  std::string data;
  for (int i = 0; i < 33; ++i) data += static_cast<char>(i);
  return safetensors(kGood, data);
}

class Safetensors : public ::testing::Test {
 protected:
  // The header is refused, with these words in the line.
  void refused(const std::string& header, const std::string& data, std::initializer_list<std::string> words) {
    put(folder_ / "x", safetensors(header, data));
    expect_error(Category::input, words, [&] { SafetensorsFile f(folder_ / "x"); });
  }
  TempFolder folder_;
};

TEST_F(Safetensors, ReadsTensors) {
  put(folder_ / "x", good_file());
  const SafetensorsFile f(folder_ / "x");
  ASSERT_EQ(f.tensors().size(), 4u);
  const TensorInfo* b = f.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->shape_text(), "[2, 3]");
  EXPECT_EQ(static_cast<int>(f.data(*f.find("a"))[0]), 24);
  EXPECT_EQ(f.find("none")->elements(), 0);
  EXPECT_EQ(f.find("scalar")->elements(), 1);
  EXPECT_EQ(f.find("c"), nullptr);
  EXPECT_EQ(f.metadata().at("format"), "pt");
  put(folder_ / "x", safetensors("  " + std::string(kGood) + "   ", std::string(33, 'x')));
  EXPECT_EQ(SafetensorsFile(folder_ / "x").tensors().size(), 4u);
  put(folder_ / "x", safetensors("{}", ""));
  EXPECT_TRUE(SafetensorsFile(folder_ / "x").tensors().empty());
}

TEST_F(Safetensors, TruncatedAtEveryByte) {
  const std::string whole = good_file();
  for (size_t n = 0; n < whole.size(); ++n) {
    put(folder_ / "x", whole.substr(0, n));
    EXPECT_FALSE(survives([&] { SafetensorsFile f(folder_ / "x"); })) << n;
  }
}

TEST_F(Safetensors, HeaderLengths) {
  for (const uint64_t n : {UINT64_MAX, UINT64_MAX - 7, uint64_t{100'000'001}, uint64_t{1} << 63}) {
    put(folder_ / "x", bytes_of(n) + "{}");
    expect_error(Category::input, {"limit"}, [&] { SafetensorsFile f(folder_ / "x"); });
  }
  put(folder_ / "x", bytes_of<uint64_t>(100'000'000) + "{}");
  expect_error(Category::input, {"passes the end"}, [&] { SafetensorsFile f(folder_ / "x"); });
}

std::string entry(const std::string& name, const std::string& shape, int begin, int end,
                  const std::string& dtype = "F32") {
  return cat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":[", begin, ",",
             end, "]}");
}

TEST_F(Safetensors, LayoutsThatLie) {
  const std::string d8(8, 'x'), d12(12, 'x');
  refused("{" + entry("a", "[2]", 0, 8) + "," + entry("b", "[1]", 4, 8) + "}", d8, {"\"b\"", "overlap"});
  refused("{" + entry("a", "[1]", 0, 4) + "," + entry("b", "[1]", 8, 12) + "}", d12, {"\"b\"", "hole"});
  refused("{" + entry("a", "[1]", 4, 8) + "}", d8, {"\"a\"", "hole"});
  refused("{" + entry("a", "[1]", 8, 4) + "}", d8, {"\"a\"", "span"});
  refused("{" + entry("a", "[1]", 0, 4) + "}", d8, {"4 bytes follow"});
  refused("{" + entry("a", "[3]", 0, 8) + "}", d8, {"\"a\"", "12 bytes"});
  refused("{" + entry("a", "[3]", 0, 12) + "}", d8, {"\"a\"", "cut short"});
  refused("{" + entry("a", "[4294967296,4294967296]", 0, 8) + "}", d8, {"\"a\"", "overflows"});
  refused("{" + entry("a", "[4611686018427387904,4]", 0, 8) + "}", d8, {"\"a\"", "overflows"});
  refused("{" + entry("a", "[9223372036854775807,0]", 0, 8) + "}", d8, {"\"a\""});
  refused("{" + entry("a", "[-1]", 0, 8) + "}", d8, {"\"a\"", "no size"});
  refused("{" + entry("a", "[2.0]", 0, 8) + "}", d8, {"\"a\"", "no size"});
  refused("{" + entry("a", "[18446744073709551616]", 0, 8) + "}", d8, {"header"});
}

TEST_F(Safetensors, HeadersThatAreBroken) {
  const std::string d8(8, 'x');
  const std::string one = entry("a", "[2]", 0, 8);
  refused("{" + one + "," + one + "}", d8, {"\"a\"", "twice"});
  refused(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", d8, {"\"a\"", "twice"});
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", d8, {"unknown field"});
  refused(R"({"a":{"dtype":"F32","shape":[2]}})", d8, {"\"a\"", "missing"});
  refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", d8, {"\"a\"", "two sizes"});
  refused(R"({"__metadata__":{"x":1}})", "", {"__metadata__"});
  refused(R"({"__metadata__":{"x":"1","x":"2"}})", "", {"__metadata__", "twice"});
  refused("{" + entry("a", "[2]", 0, 8, "F8_E4M3") + "}", d8, {"F8_E4M3", "not supported"});
  refused("{" + entry("a\\nb", "[2]", 0, 8) + "}", d8, {"a\\nb", "control"});
  refused("{\"\xff\":1}", "", {"header"});
  refused("[1]", "", {"header"});
  refused("{} x", "", {"header"});
  refused(std::string(100000, '['), "", {"header"});
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  refused(deep, "", {"header"});
}

TEST_F(Safetensors, RandomMutations) {
  const std::string whole = good_file();
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k <= static_cast<int>(random() % 3); ++k)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    put(folder_ / "x", bytes);
    survives([&] {
      const SafetensorsFile f(folder_ / "x");
      for (const TensorInfo& t : f.tensors()) EXPECT_LE(t.offset + t.bytes, f.file().size());
    });
  }
}

// The reference's order: dtype descending, then name; and bytes that its own writer gives.
TEST_F(Safetensors, WritesWhatTheReferenceWrites) {
  const std::string golden = io_test::kModels + "/llama/adapter/adapter_model.safetensors";
  const SafetensorsFile f(golden);
  std::vector<TensorSpec> specs;
  for (const TensorInfo& t : f.tensors()) specs.insert(specs.begin(), {t.name, t.dtype, t.shape});
  SafetensorsWriter w(folder_ / "x", specs);
  for (const TensorSpec& t : w.order()) w.write(t.name, f.data(*f.find(t.name)), t.bytes());
  w.commit();
  EXPECT_EQ(io_test::get(folder_ / "x"), io_test::get(golden));
}

TEST_F(Safetensors, WriterOrderAndGuards) {
  SafetensorsWriter w(folder_ / "x", {{"b", DType::u8, {1}},
                                      {"a", DType::u8, {2}},
                                      {"empty", DType::f64, {0}},
                                      {"z", DType::f32, {1}},
                                      {"y", DType::bf16, {1}}});
  std::string order;
  for (const TensorSpec& t : w.order()) order += t.name + " ";
  EXPECT_EQ(order, "empty z y a b ");
  const float four = 1;
  expect_error(Category::internal, {"order"}, [&] { w.write("a", &four, 2); });
  expect_error(Category::internal, {"more bytes"}, [&] { w.write("z", "12345", 5); });
  expect_error(Category::internal, {"finished"}, [&] { w.commit(); });
  w.write("empty", nullptr, 0);
  w.write("z", "12", 2);
  w.write("z", "34", 2);
  w.write("y", "56", 2);
  w.write("a", "78", 2);
  w.write("b", "9", 1);
  w.commit();
  const SafetensorsFile f(folder_ / "x");
  EXPECT_EQ(f.file().text().substr(f.file().size() - 9), "123456789");
  EXPECT_EQ((f.file().size() - 9) % 8, 0u);
}

class Shards : public Safetensors {
 protected:
  void index(const std::string& map) {
    put(folder_ / "model.safetensors.index.json", "{\"weight_map\":" + map + "}");
  }
  void refused_index(std::initializer_list<std::string> words) {
    expect_error(Category::input, words, [&] { SafetensorsFolder f(folder_.path()); });
  }
  std::string one(const std::string& name) {
    return safetensors("{" + entry(name, "[1]", 0, 4) + "}", "abcd");
  }
};

TEST_F(Shards, AreFoundByTheIndex) {
  put(folder_ / "s1.safetensors", one("a"));
  put(folder_ / "s2.safetensors", one("b"));
  index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  const SafetensorsFolder f(folder_.path());
  EXPECT_EQ(f.files().size(), 2u);
  EXPECT_EQ(f.find("b")->file->path(), folder_ / "s2.safetensors");
  index(R"({"a":"s1.safetensors","b":"s3.safetensors"})");
  refused_index({"s3.safetensors", "absent"});
  index(R"({"a":"s1.safetensors","c":"s2.safetensors"})");
  refused_index({"\"c\"", "s2.safetensors"});
  index(R"({"a":"s1.safetensors","a":"s2.safetensors"})");
  refused_index({"twice"});
  index("[]");
  refused_index({"weight_map"});
  put(folder_ / "model.safetensors.index.json", std::string(100000, '['));
  refused_index({"nested deeper"});
}

TEST_F(Shards, StayInTheFolder) {
  TempFolder other;
  put(other / "s.safetensors", one("a"));
  for (const std::string& name :
       {"../" + std::filesystem::path(other.path()).filename().string() + "/s.safetensors",
        other / "s.safetensors", std::string(".."), std::string(""), std::string("sub/s.safetensors")}) {
    index("{\"a\":\"" + name + "\"}");
    refused_index({"no plain file name"});
  }
  std::filesystem::create_symlink(other / "s.safetensors", folder_ / "s.safetensors");
  index(R"({"a":"s.safetensors"})");
  refused_index({"link out of the folder"});
  // The hub cache's own links lead to blobs/.
  namespace fs = std::filesystem;
  fs::create_directories(folder_ / "hub/snapshots/abc");
  fs::create_directories(folder_ / "hub/blobs");
  put(folder_ / "hub/blobs/123", one("a"));
  fs::create_symlink("../../blobs/123", folder_ / "hub/snapshots/abc/s.safetensors");
  put(folder_ / "hub/snapshots/abc/model.safetensors.index.json", R"({"weight_map":{"a":"s.safetensors"}})");
  EXPECT_NE(SafetensorsFolder(folder_ / "hub/snapshots/abc").find("a"), nullptr);
}

}  // namespace
}  // namespace qlora
