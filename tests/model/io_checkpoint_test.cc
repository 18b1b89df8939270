#include "model/io/checkpoint.h"

#include <cmath>
#include <limits>
#include <random>

#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "model/io/stored_checkpoint.h"
#include "tests/model/io_support.h"

namespace qlora {
namespace {

using io_test::bytes_of;
using io_test::expect_error;
using io_test::get;
using io_test::kModels;
using io_test::put;
using io_test::rows_of;
using io_test::survives;
using io_test::TempFolder;

// A safetensors folder taken apart, to be changed and put together again.
struct Parts {
  std::map<std::string, std::pair<TensorSpec, std::string>> tensors;
  Json config;
  explicit Parts(const std::string& folder) : config(read_json(folder + "/config.json")) {
    const SafetensorsFile f(folder + "/model.safetensors");
    for (const TensorInfo& t : f.tensors())
      tensors[t.name] = {{t.name, t.dtype, t.shape},
                         std::string(reinterpret_cast<const char*>(f.data(t)), t.bytes)};
  }
  std::string& data(const std::string& name) { return tensors.at(name).second; }
  void set(const std::string& name, DType dtype, std::vector<int64_t> shape, std::string bytes) {
    tensors[name] = {{name, dtype, std::move(shape)}, std::move(bytes)};
  }
  void write(const std::string& folder) const {
    std::vector<TensorSpec> specs;
    for (const auto& [name, t] : tensors) specs.push_back(t.first);
    SafetensorsWriter w(folder + "/model.safetensors", specs);
    for (const TensorSpec& t : w.order()) w.write(t.name, tensors.at(t.name).second.data(), t.bytes());
    w.commit();
    put(folder + "/config.json", config.dump());
  }
};

void refused(const Parts& parts, std::initializer_list<std::string> words) {
  const TempFolder folder;
  parts.write(folder.path());
  expect_error(Category::input, words, [&] { Checkpoint::open(folder.path()); });
}

TEST(Checkpoint, PlainFolder) {
  const auto c = Checkpoint::open(kModels + "/llama");
  EXPECT_FALSE(c->quantization().has_value());
  const SafetensorsFile f(kModels + "/llama/model.safetensors");
  for (const ExpectedTensor& e : expected_tensors(c->desc())) {
    const TensorInfo* t = f.find(e.name());
    ASSERT_NE(t, nullptr) << e.name();
    EXPECT_EQ(c->value_dtype(e.name()), DType::bf16);
    EXPECT_TRUE(c->in_place(e.name()));
    EXPECT_EQ(c->view(e.name()).format, Format::bf16);
    const std::vector<float> values =
        e.vector ? c->read_vector(e.name(), e.cols) : rows_of(*c, e.name(), e.rows, e.cols);
    const auto* stored = reinterpret_cast<const uint8_t*>(f.data(*t));
    for (size_t i = 0; i < values.size(); i += 7) {
      bf16 b;
      std::memcpy(&b.bits, stored + 2 * i, 2);
      ASSERT_EQ(values[i], static_cast<float>(b)) << e.name() << " " << i;
    }
    c->check_finite(e.name());
  }
  EXPECT_FALSE(c->has("model.layers.3.self_attn.q_proj.weight"));
  EXPECT_EQ(c->fingerprint(), Checkpoint::open(kModels + "/llama")->fingerprint());
  EXPECT_NE(c->fingerprint(), Checkpoint::open(kModels + "/llama_rope3")->fingerprint());
}

TEST(Checkpoint, TiedAndBiased) {
  const auto c = Checkpoint::open(kModels + "/llama_bias_tied");
  EXPECT_FALSE(c->has("lm_head.weight"));
  EXPECT_EQ(c->read_vector("model.layers.1.mlp.down_proj.bias", 192).size(), 192u);
  Parts p(kModels + "/llama_bias_tied");
  const std::string embed = p.data("model.embed_tokens.weight");
  p.set("lm_head.weight", DType::bf16, {256, 192}, embed);
  const TempFolder folder;
  p.write(folder.path());
  EXPECT_FALSE(Checkpoint::open(folder.path())->has("lm_head.weight"));  // the same bytes: nothing lost
  p.data("lm_head.weight")[5] ^= 1;
  refused(p, {"lm_head.weight", "differs"});
}

TEST(Checkpoint, WhatDoesNotFitIsRefused) {
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  Parts p(kModels + "/llama");
  p.tensors.erase(q);
  refused(p, {q, "absent"});
  p = Parts(kModels + "/llama");
  p.set("model.layers.0.self_attn.q_proj.bias", DType::bf16, {128}, std::string(256, '\0'));
  refused(p, {"q_proj.bias", "no place"});
  p = Parts(kModels + "/llama");
  p.config["intermediate_size"] = 96;
  refused(p, {"gate_proj", "[192, 128]", "[96, 128]"});
  p = Parts(kModels + "/llama");
  p.set(q, DType::i16, {128, 128}, std::string(32768, '\0'));
  refused(p, {q, "I16"});
  const TempFolder folder;
  expect_error(Category::input, {"config.json"}, [&] { Checkpoint::open(folder.path()); });
  put(folder / "config.json", get(kModels + "/llama/config.json"));
  expect_error(Category::input, {"model.safetensors"}, [&] { Checkpoint::open(folder.path()); });
  put(folder / "pytorch_model.bin", "x");
  expect_error(Category::input, {"pytorch_model.bin"}, [&] { Checkpoint::open(folder.path()); });
  expect_error(Category::input, {"no such model"}, [&] { Checkpoint::open(folder / "absent"); });
}

TEST(Checkpoint, NaNIsNamed) {
  Parts p(kModels + "/llama");
  const TempFolder folder;
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  p.data(name)[2 * (3 * 128 + 5)] = '\xc0';
  p.data(name)[2 * (3 * 128 + 5) + 1] = '\x7f';
  p.write(folder.path());
  const auto c = Checkpoint::open(folder.path());
  expect_error(Category::input, {"/model.safetensors: ", name, "row 3, column 5", "nan"},
               [&] { rows_of(*c, name, 192, 128); });
  expect_error(Category::input, {"/model.safetensors: ", name, "row 3, column 5"},
               [&] { c->check_finite(name); });
  EXPECT_NE(c->fingerprint(), Checkpoint::open(kModels + "/llama")->fingerprint());
}

// A header of a length that is no multiple of 8 leaves every tensor at an odd address.
TEST(Checkpoint, UnalignedTensorsAreReadRight) {
  const TempFolder folder;
  for (const char* model : {"/llama", "/llama/nf4"}) {
    std::string bytes = get(kModels + model + "/model.safetensors");
    uint64_t n = 0;
    std::memcpy(&n, bytes.data(), 8);
    bytes.insert(8 + n, " ");
    bytes.replace(0, 8, bytes_of(n + 1));
    put(folder / "model.safetensors", bytes);
    put(folder / "config.json", get(kModels + model + "/config.json"));
    const auto odd = Checkpoint::open(folder.path()), even = Checkpoint::open(kModels + model);
    const std::string q = "model.layers.2.mlp.down_proj.weight";
    EXPECT_EQ(odd->in_place(q), std::string(model) == "/llama/nf4");  // packed bytes need no alignment
    EXPECT_EQ(rows_of(*odd, q, 128, 192), rows_of(*even, q, 128, 192));
    odd->check_finite(q);
  }
}

// ---- bitsandbytes ----

const std::string kQ = "model.layers.0.self_attn.q_proj.weight";
const std::string kState = kQ + ".quant_state.bitsandbytes__nf4";

TEST(BitsAndBytes, Folder) {
  const auto c = Checkpoint::open(kModels + "/llama/nf4");
  ASSERT_TRUE(c->quantization().has_value());
  EXPECT_EQ(c->quantization()->format, Format::nf4);
  EXPECT_TRUE(c->quantization()->double_quant);
  EXPECT_EQ(c->quantization()->block_size, 64);
  const auto plain = Checkpoint::open(kModels + "/llama");
  const std::vector<float> q = rows_of(*c, kQ, 128, 128), w = rows_of(*plain, kQ, 128, 128);
  const WeightView v = c->view(kQ);
  for (size_t i = 0; i < w.size(); ++i)  // half the widest gap of NF4's codes is 0.152 of the block's scale
    ASSERT_LE(std::abs(q[i] - w[i]), 0.16f * v.block_scale(static_cast<int64_t>(i) / 64)) << i;
  c->check_finite(kQ);
  EXPECT_EQ(c->value_dtype(kQ), DType::f32);
  EXPECT_EQ(c->value_dtype("lm_head.weight"), DType::bf16);
}

TEST(BitsAndBytes, FaultsOfParts) {
  const auto broken = [](const std::string& name, const std::function<void(Parts&)>& change,
                         std::initializer_list<std::string> words) {
    SCOPED_TRACE(name);
    Parts p(kModels + "/llama/nf4");
    change(p);
    refused(p, words);
  };
  broken("absmax length", [](Parts& p) { p.set(kQ + ".absmax", DType::u8, {255}, std::string(255, 'x')); },
         {kQ + ".absmax", "[255]", "256 elements"});
  broken("absmax type", [](Parts& p) { p.set(kQ + ".absmax", DType::f32, {256}, std::string(1024, '\0')); },
         {kQ + ".absmax", "F32"});
  broken("no absmax", [](Parts& p) { p.tensors.erase(kQ + ".absmax"); }, {kQ + ".absmax", "absent"});
  broken("no nested", [](Parts& p) { p.tensors.erase(kQ + ".nested_absmax"); }, {".nested_absmax", "absent"});
  broken("map", [](Parts& p) { p.data(kQ + ".quant_map")[7] ^= 64; }, {".quant_map", "element 1"});
  broken("nan", [](Parts& p) { p.data(kQ + ".nested_absmax") = bytes_of(std::nanf("")); },
         {".nested_absmax", "element 0", "nan"});
  broken("weight",
         [](Parts& p) {
           p.set(kQ, DType::u8, {10, 1}, std::string(10, 'x'));
         },
         {kQ, "8192 elements"});
  broken("stray", [](Parts& p) { p.set("x.absmax", DType::u8, {1}, "x"); }, {"x.absmax", "no place"});
}

TEST(BitsAndBytes, FaultsOfTheState) {
  const auto state = [](const std::string& from, const std::string& to,
                        std::initializer_list<std::string> words) {
    SCOPED_TRACE(to);
    Parts p(kModels + "/llama/nf4");
    std::string text = p.data(kState);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << text;
    text.replace(at, from.size(), to);
    const auto size = static_cast<int64_t>(text.size());
    p.set(kState, DType::u8, {size}, text);
    refused(p, words);
  };
  state("\"dtype\": \"bfloat16\"", "\"dtype\": \"int4\"", {kState, "dtype", "int4"});
  state("\"nested_offset\"", "\"nested_offsat\"", {kState, "nested_offset"});
  state("\"blocksize\": 64", "\"blocksize\": 63", {kState, "blocksize"});
  state("\"blocksize\": 64", "\"blocksize\": 128", {kQ + ".absmax", "128 elements"});
  state("\"nested_blocksize\": 256", "\"nested_blocksize\": 128", {"nested_blocksize"});
  state("\"shape\": [128, 128]", "\"shape\": [128, 64]", {"shape", "[128, 128]"});
  state("\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", {"quant_type"});
  state("{", "{\"quant_type\": \"nf4\", ", {"quant_type", "twice"});
  state("{", "", {kState, "JSON"});
}

TEST(BitsAndBytes, FaultsOfTheConfig) {
  const auto config = [](const std::function<void(Json&)>& change, std::initializer_list<std::string> words) {
    Parts p(kModels + "/llama/nf4");
    change(p.config);
    refused(p, words);
  };
  config([](Json& c) { c.erase("quantization_config"); }, {"quantization_config", "absent"});
  config([](Json& c) { c["quantization_config"]["quant_method"] = "gptq"; }, {"quant_method", "gptq"});
  config([](Json& c) { c["quantization_config"]["bnb_4bit_quant_type"] = "fp4"; }, {"other types"});
  config([](Json& c) { c["quantization_config"]["bnb_4bit_quant_storage"] = "bfloat16"; }, {"quant_storage"});
  config([](Json& c) { c["quantization_config"]["load_in_8bit"] = true; }, {"exactly one"});
  config([](Json& c) { c["quantization_config"]["trick"] = 1; }, {"trick"});
  Parts p(kModels + "/llama");
  p.config["quantization_config"] = read_json(kModels + "/llama/nf4/config.json")["quantization_config"];
  refused(p, {"no tensor is quantized"});
}

// Hostile files at the level of the whole reader: taken or refused, never a crash.
TEST(BitsAndBytes, RandomMutations) {
  const TempFolder folder;
  const std::string whole = get(kModels + "/llama/nf4/model.safetensors");
  put(folder / "config.json", get(kModels + "/llama/nf4/config.json"));
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 2; ++k)
      bytes[random() % (i % 2 == 0 ? header : bytes.size())] = static_cast<char>(random());
    put(folder / "model.safetensors", bytes);
    survives([&] {
      const auto c = Checkpoint::open(folder.path());
      for (const ExpectedTensor& e : expected_tensors(c->desc())) c->check_finite(e.name());
    });
  }
}

}  // namespace
}  // namespace qlora
