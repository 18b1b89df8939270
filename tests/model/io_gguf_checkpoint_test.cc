#include <cmath>
#include <random>

#include "model/io/checkpoint.h"
#include "model/io/json.h"
#include "model/io/stored_checkpoint.h"
#include "tests/model/gguf_of.h"

namespace qlora {
namespace {

using io_test::bytes_of;
using io_test::expect_error;
using io_test::gguf_of;
using io_test::GgufBuilder;
using io_test::kModels;
using io_test::put;
using io_test::rows_of;
using io_test::survives;
using io_test::TempFolder;

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

}  // namespace
}  // namespace qlora
