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
using io_test::GgufBuilder;
using io_test::kModels;
using io_test::put;
using io_test::survives;
using io_test::TempFolder;

std::vector<float> rows_of(const Checkpoint& c, const std::string& name, int64_t rows, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  c.read_rows(name, 0, rows, out.data());
  return out;
}

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
  expect_error(Category::input, {name, "row 3, column 5", "nan"}, [&] { rows_of(*c, name, 192, 128); });
  expect_error(Category::input, {name, "row 3, column 5"}, [&] { c->check_finite(name); });
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

// ---- GGUF ----

std::string gguf_name(std::string name) {
  const std::pair<const char*, const char*> parts[] = {{"model.embed_tokens", "token_embd"},
                                                       {"model.norm", "output_norm"},
                                                       {"lm_head", "output"},
                                                       {"model.layers.", "blk."},
                                                       {"self_attn.q_proj", "attn_q"},
                                                       {"self_attn.k_proj", "attn_k"},
                                                       {"self_attn.v_proj", "attn_v"},
                                                       {"self_attn.o_proj", "attn_output"},
                                                       {"mlp.gate_proj", "ffn_gate"},
                                                       {"mlp.up_proj", "ffn_up"},
                                                       {"mlp.down_proj", "ffn_down"},
                                                       {"input_layernorm", "attn_norm"},
                                                       {"post_attention_layernorm", "ffn_norm"}};
  for (const auto& [from, to] : parts)
    if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, std::strlen(from), to);
  return name;
}

// llama.cpp's converter: reshape(heads, 2, half, in).swapaxes(1, 2).
std::vector<float> permuted(const std::vector<float>& w, int64_t rows, int64_t cols, int heads) {
  std::vector<float> out(w.size());
  const int64_t half = rows / heads / 2;
  int64_t to = 0;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t j = 0; j < half; ++j)
      for (int64_t k = 0; k < 2; ++k, ++to)
        std::copy_n(w.begin() + (h * 2 * half + k * half + j) * cols, cols, out.begin() + to * cols);
  return out;
}

// A golden folder as a converter would write it in fp32.
GgufBuilder gguf_of(const Checkpoint& c) {
  const ModelDesc& d = c.desc();
  const BlockDesc& b = d.blocks[0];
  GgufBuilder out;
  out.string("general.architecture", "llama")
      .u32("llama.block_count", static_cast<uint32_t>(d.blocks.size()));
  out.u32("llama.context_length", static_cast<uint32_t>(d.max_positions));
  out.u32("llama.embedding_length", static_cast<uint32_t>(d.dim));
  out.u32("llama.feed_forward_length", static_cast<uint32_t>(b.ff));
  out.u32("llama.attention.head_count", static_cast<uint32_t>(b.q_heads));
  out.u32("llama.attention.head_count_kv", static_cast<uint32_t>(b.kv_heads));
  out.u32("llama.attention.key_length", static_cast<uint32_t>(b.head_dim));
  out.u32("llama.attention.value_length", static_cast<uint32_t>(b.head_dim));
  out.u32("llama.rope.dimension_count", static_cast<uint32_t>(b.head_dim));
  out.f32("llama.attention.layer_norm_rms_epsilon", b.norm_eps).f32("llama.rope.freq_base", 10000);
  out.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  for (const ExpectedTensor& e : expected_tensors(d)) {
    std::vector<float> w = e.vector ? c.read_vector(e.name(), e.cols) : rows_of(c, e.name(), e.rows, e.cols);
    if (e.permuted_heads != 0)
      w = e.vector ? permuted(w, e.cols, 1, e.permuted_heads) : permuted(w, e.rows, e.cols, e.permuted_heads);
    const std::string data(reinterpret_cast<const char*>(w.data()), w.size() * 4);
    out.tensor(gguf_name(e.name()),
               e.vector ? std::vector<int64_t>{e.cols} : std::vector<int64_t>{e.cols, e.rows}, 0, data);
  }
  return out;
}

TEST(GgufCheckpoint, SameAsTheFolderItCameFrom) {
  const TempFolder folder;
  for (const char* model : {"/llama", "/llama_bias_tied"}) {
    const auto hf = Checkpoint::open(kModels + model);
    put(folder / "m.gguf", gguf_of(*hf).build());
    const auto c = Checkpoint::open(folder / "m.gguf");
    EXPECT_EQ(c->desc().tied, hf->desc().tied);
    EXPECT_EQ(c->desc().blocks[0].head_dim, hf->desc().blocks[0].head_dim);
    EXPECT_EQ(c->desc().blocks[0].norm_eps, hf->desc().blocks[0].norm_eps);
    EXPECT_EQ(c->desc().eos, hf->desc().eos);
    EXPECT_EQ(c->desc().blocks[0].qkv_bias, hf->desc().blocks[0].qkv_bias);
    for (const ExpectedTensor& e : expected_tensors(hf->desc())) {
      EXPECT_EQ(c->in_place(e.name()), e.permuted_heads == 0) << e.name();
      if (e.vector) {
        EXPECT_EQ(c->read_vector(e.name(), e.cols), hf->read_vector(e.name(), e.cols)) << e.name();
        continue;
      }
      EXPECT_EQ(rows_of(*c, e.name(), e.rows, e.cols), rows_of(*hf, e.name(), e.rows, e.cols)) << e.name();
      std::vector<float> stored(static_cast<size_t>(e.rows * e.cols));
      ASSERT_EQ(c->stored_row_bytes(e.name()), static_cast<size_t>(e.cols) * 4);
      c->read_stored(e.name(), 0, e.rows, stored.data());
      EXPECT_EQ(stored, rows_of(*hf, e.name(), e.rows, e.cols)) << e.name();
    }
    const Json config = parse_json(c->config_json(), "config");
    EXPECT_EQ(config["rms_norm_eps"], 0.001);
    EXPECT_EQ(config["rope_theta"], 10000.0);
  }
}

TEST(GgufCheckpoint, BlocksAreRoundedToBf16) {
  const TempFolder folder;
  const auto hf = Checkpoint::open(kModels + "/llama_rope3");
  // The same file, its last tensor (the head) as Q4_1 blocks: d 0.3, m 0.1, every code 7.
  const std::string block =
      bytes_of<uint16_t>(f16(0.3f).bits) + bytes_of<uint16_t>(f16(0.1f).bits) + std::string(16, '\x77');
  std::string head;
  for (int i = 0; i < 256 * 64 / 32; ++i) head += block;
  std::string bytes = gguf_of(*hf).build();
  const size_t info = bytes.rfind("output.weight") + std::strlen("output.weight");
  bytes.replace(info + 4 + 16, 4, bytes_of<uint32_t>(3));
  bytes.resize(bytes.size() - 256 * 64 * 4);
  put(folder / "m.gguf", bytes + head);
  const auto c = Checkpoint::open(folder / "m.gguf");
  const float exact = static_cast<float>(f16(0.3f)) * 7.0f + static_cast<float>(f16(0.1f));
  EXPECT_NE(round_to(DType::bf16, exact), exact);
  for (const float f : rows_of(*c, "lm_head.weight", 256, 64)) ASSERT_EQ(f, round_to(DType::bf16, exact));
  EXPECT_EQ(c->value_dtype("lm_head.weight"), DType::bf16);
  EXPECT_EQ(c->value_dtype("model.norm.weight"), DType::f32);
  EXPECT_TRUE(c->in_place("lm_head.weight"));
}

TEST(GgufCheckpoint, RopeFactorsAreLlama3) {
  const TempFolder folder;
  const auto hf = Checkpoint::open(kModels + "/llama_rope3");
  // As the converter writes them for factor 8, low 1, high 4, original length 8192.
  std::vector<float> factors;
  for (int i = 0; i < 16; ++i) {
    const double wavelength = 2 * 3.14159265358979323846 * std::pow(10000.0, i / 16.0);
    const double smooth = (8192 / wavelength - 1) / 3;
    factors.push_back(static_cast<float>(wavelength < 2048   ? 1
                                         : wavelength > 8192 ? 8
                                                             : 1 / ((1 - smooth) / 8 + smooth)));
  }
  const std::string data(reinterpret_cast<const char*>(factors.data()), factors.size() * 4);
  put(folder / "m.gguf", gguf_of(*hf).tensor("rope_freqs.weight", {16}, 0, data).build());
  const auto c = Checkpoint::open(folder / "m.gguf");
  EXPECT_EQ(c->desc().rope.gguf_factors, factors);
  const Json scaling = parse_json(c->config_json(), "config")["rope_scaling"];
  EXPECT_EQ(scaling["rope_type"], "llama3");
  EXPECT_EQ(scaling["factor"], 8);
  EXPECT_EQ(scaling["original_max_position_embeddings"], 8192);
  const std::string strange = bytes_of(3.3f) + data.substr(4);
  put(folder / "m.gguf", gguf_of(*hf).tensor("rope_freqs.weight", {16}, 0, strange).build());
  const auto odd = Checkpoint::open(folder / "m.gguf");
  expect_error(Category::input, {"rope_freqs.weight"}, [&] { odd->config_json(); });
  put(folder / "m.gguf",
      gguf_of(*hf).tensor("rope_freqs.weight", {16}, 0, bytes_of(0.0f) + data.substr(4)).build());
  expect_error(Category::input, {"rope_freqs.weight", "element 0"},
               [&] { Checkpoint::open(folder / "m.gguf"); });
}

TEST(GgufCheckpoint, RefusesWhatItDoesNotKnow) {
  const TempFolder folder;
  const auto hf = Checkpoint::open(kModels + "/llama_rope3");
  const auto refuse = [&](const GgufBuilder& b, std::initializer_list<std::string> words) {
    put(folder / "m.gguf", b.build());
    expect_error(Category::input, words, [&] { Checkpoint::open(folder / "m.gguf"); });
  };
  refuse(GgufBuilder().string("general.architecture", "qwen2"), {"qwen2", "supported are llama"});
  refuse(GgufBuilder().u32("x", 1), {"general.architecture"});
  refuse(gguf_of(*hf).u32("llama.attention.sliding_window", 9), {"llama.attention.sliding_window"});
  refuse(gguf_of(*hf).u32("llama.expert_count", 8), {"experts"});
  refuse(gguf_of(*hf).string("llama.rope.scaling.type", "yarn"), {"yarn"});
  refuse(gguf_of(*hf).tensor("blk.0.attn_q_norm.weight", {1}, 0, "1234"), {"attn_q_norm", "no place"});
  refuse(GgufBuilder().string("general.architecture", "llama"), {"token_embd.weight"});
}

// Hostile files at the level of the whole reader: taken or refused, never a crash.
TEST(GgufCheckpoint, RandomMutations) {
  const TempFolder folder;
  const auto hf = Checkpoint::open(kModels + "/llama_rope3");
  const std::string whole = gguf_of(*hf).build();
  std::mt19937 random(3);
  int taken = 0;
  for (int i = 0; i < 400; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 2; ++k) bytes[random() % 3000] = static_cast<char>(random());
    put(folder / "m.gguf", bytes);
    taken += survives([&] {
      const auto c = Checkpoint::open(folder / "m.gguf");
      for (const ExpectedTensor& e : expected_tensors(c->desc())) c->check_finite(e.name());
      c->config_json();
    });
  }
  EXPECT_LT(taken, 400);
}

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
