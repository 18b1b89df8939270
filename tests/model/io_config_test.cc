#include <limits>

#include "model/families/families.h"
#include "model/io/config.h"
#include "tests/model/io_support.h"

namespace qlora {
namespace {

using io_test::expect_error;
using io_test::put;
using io_test::TempFolder;

Json golden_config(const std::string& model, const std::string& name = "config.json") {
  return read_json(io_test::kModels + "/" + model + "/" + name);
}

ModelDesc describe(const Json& config) {
  return family_of_config(config, "config.json").describe(config, "config.json");
}

void refused(const Json& config, std::initializer_list<std::string> words) {
  expect_error(Category::input, words, [&] { describe(config); });
}

Json with(const char* key, const Json& value) {
  Json config = golden_config("llama");
  config[key] = value;
  return config;
}

TEST(JsonStrict, RefusesWhatOtherReadersTake) {
  const auto refuse = [](const std::string& text, std::initializer_list<std::string> words) {
    expect_error(Category::input, words, [&] { parse_json(text, "f.json"); });
  };
  refuse(R"({"a":1,"a":2})", {"f.json", "\"a\"", "twice"});
  refuse(R"({"b":{"a":[{"c":1,"c":2}]}})", {"\"c\"", "twice"});
  refuse(std::string(100000, '['), {"f.json", "deeper than 64"});
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  refuse(objects, {"deeper than 64"});
  refuse("", {"f.json"});
  refuse("{\"a\":\"\xff\"}", {"f.json"});
  refuse("{\"a\":1e999}", {"f.json"});
  refuse("{} {}", {"f.json"});
  EXPECT_EQ(parse_json(R"({"a":{"x":1},"b":{"x":1}})", "f").size(),
            2u);  // the same key in two objects is fine
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "f"));
  EXPECT_ANY_THROW(parse_json(std::string(65, '[') + std::string(65, ']'), "f"));
}

TEST(Config, BothSpellingsSayTheSame) {
  for (const char* model : {"llama", "llama_rope3"}) {
    const ModelDesc now = describe(golden_config(model)),
                    old = describe(golden_config(model, "config_old.json"));
    EXPECT_EQ(now.rope.kind, old.rope.kind);
    EXPECT_EQ(now.rope.theta, old.rope.theta);
    EXPECT_EQ(now.rope.factor, old.rope.factor);
    EXPECT_EQ(now.rope.low_freq_factor, old.rope.low_freq_factor);
    EXPECT_EQ(now.rope.high_freq_factor, old.rope.high_freq_factor);
    EXPECT_EQ(now.rope.original_max_positions, old.rope.original_max_positions);
    EXPECT_EQ(now.blocks.size(), old.blocks.size());
  }
  const ModelDesc d = describe(golden_config("llama_rope3"));
  EXPECT_EQ(d.rope.kind, RopeDesc::Kind::llama3);
  EXPECT_EQ(d.rope.factor, 8);
  EXPECT_EQ(d.rope.original_max_positions, 64);
}

TEST(Config, Llama) {
  const ModelDesc d = describe(golden_config("llama"));
  EXPECT_EQ(d.vocab, 272);
  EXPECT_EQ(d.dim, 128);
  ASSERT_EQ(d.blocks.size(), 3u);
  EXPECT_EQ(d.blocks[0].ff, 192);
  EXPECT_EQ(d.blocks[0].q_heads, 4);
  EXPECT_EQ(d.blocks[0].kv_heads, 2);
  EXPECT_EQ(d.blocks[0].head_dim, 32);
  EXPECT_EQ(d.blocks[0].attn_scale, static_cast<float>(1 / std::sqrt(32.0)));
  EXPECT_EQ(d.blocks[0].norm_eps, 1e-3f);
  EXPECT_FALSE(d.tied);
  EXPECT_EQ(d.bos, 1);
  EXPECT_EQ(d.eos, std::vector<int32_t>{2});
  EXPECT_EQ(d.pad, std::nullopt);
  const ModelDesc biased = describe(golden_config("llama_bias_tied"));
  EXPECT_TRUE(biased.blocks[0].qkv_bias && biased.blocks[0].o_bias && biased.blocks[0].mlp_bias &&
              biased.tied);
}

TEST(Config, Qwen3) {
  const ModelDesc d = describe(golden_config("qwen3"));
  ASSERT_EQ(d.blocks.size(), 2u);
  EXPECT_EQ(d.dim, 64);
  EXPECT_EQ(d.blocks[0].head_dim, 32);  // not 64 over 4 heads
  EXPECT_EQ(d.blocks[0].q_dim(), 128);
  EXPECT_EQ(d.blocks[0].attn_scale, static_cast<float>(1 / std::sqrt(32.0)));
  EXPECT_TRUE(d.blocks[0].qk_norm);
  EXPECT_FALSE(d.blocks[0].qkv_bias || d.blocks[0].o_bias || d.blocks[0].mlp_bias);
  EXPECT_EQ(d.norm_size(1, NormKind::q), 32);
  EXPECT_EQ(describe(golden_config("llama")).norm_size(1, NormKind::q), 0);
  EXPECT_EQ(d.rope.theta, 1e6);
  const ModelDesc large = describe(read_json(std::string(QLORA_GOLDEN) + "/configs/qwen3_8b/config.json"));
  EXPECT_EQ(large.blocks.size(), 36u);
  EXPECT_EQ(large.blocks[0].q_dim(), 4096);
  EXPECT_EQ(large.blocks[0].kv_dim(), 1024);
  // Qwen3Config's own defaults.
  const ModelDesc bare = describe(Json{{"model_type", "qwen3"}});
  EXPECT_EQ(bare.vocab, 151936);
  EXPECT_EQ(bare.blocks[0].ff, 22016);
  EXPECT_EQ(bare.blocks[0].head_dim, 128);
  EXPECT_EQ(bare.max_positions, 32768);
  Json windowed = golden_config("qwen3");
  windowed["use_sliding_window"] = true;
  refused(windowed, {"use_sliding_window"});
}

// What transformers leaves in a model that it read from a GGUF.
TEST(Config, BookkeepingIsNoMathematics) {
  Json config = golden_config("llama");
  config["_model_name_or_path"] = "somewhere";
  config["unk_token_id"] = 0;
  EXPECT_EQ(describe(config).dim, 128);
  config["a_new_kind_of_scaling"] = 2;
  EXPECT_THROW(describe(config), Error);
}

// transformers' LlamaConfig: an absent key has its default.
TEST(Config, AbsentKeysTakeTheFamilysDefaults) {
  const ModelDesc d = describe(Json{{"model_type", "llama"}});
  EXPECT_EQ(d.vocab, 32000);
  EXPECT_EQ(d.dim, 4096);
  EXPECT_EQ(d.blocks.size(), 32u);
  EXPECT_EQ(d.blocks[0].ff, 11008);
  EXPECT_EQ(d.blocks[0].kv_heads, 32);
  EXPECT_EQ(d.blocks[0].head_dim, 128);
  EXPECT_EQ(d.blocks[0].norm_eps, 1e-6f);
  EXPECT_EQ(d.rope.theta, 10000);
  EXPECT_EQ(d.max_positions, 2048);
}

TEST(Config, HeadCounts) {
  for (const char* key :
       {"num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "num_hidden_layers"})
    for (const Json& bad :
         {Json(0), Json(-4), Json(2.5), Json("4"), Json(int64_t{1} << 40), Json(UINT64_MAX)})
      refused(with(key, bad), {key});
  refused(with("num_key_value_heads", 3), {"num_key_value_heads"});
  refused(with("head_dim", 31), {"head_dim"});
  Json odd = with("num_attention_heads", 6);
  odd.erase("head_dim");
  refused(odd, {"num_attention_heads"});
}

TEST(Config, WhatWouldChangeTheResult) {
  refused(with("new_trick", true), {"new_trick", "does not know"});
  refused(with("sliding_window", 512), {"sliding_window"});
  refused(with("hidden_act", "gelu"), {"hidden_act", "gelu"});
  refused(with("pretraining_tp", 2), {"pretraining_tp"});
  refused(with("attention_dropout", 0.1), {"attention_dropout"});
  refused(with("rope_interleaved", true), {"rope_interleaved"});
  refused(with("rms_norm_eps", 0), {"rms_norm_eps"});
  refused(with("eos_token_id", 272), {"eos_token_id"});
  refused(with("eos_token_id", Json::array({1, "x"})), {"eos_token_id"});
  refused(with("layer_types", Json::array({"full_attention", "sliding_attention"})), {"layer_types"});
  EXPECT_NO_THROW(describe(with("sliding_window", nullptr)));
  EXPECT_NO_THROW(describe(with("attention_dropout", 0)));
  EXPECT_NO_THROW(describe(with("rope_interleaved", false)));
  EXPECT_NO_THROW(describe(with("pad_token_id", -1)));
  EXPECT_EQ(describe(with("eos_token_id", Json::array({2, 5}))).eos, (std::vector<int32_t>{2, 5}));
  refused(Json::array(), {"object"});
}

TEST(Config, RopeScaling) {
  const auto rope = [](const Json& scaling) {
    Json config = golden_config("llama", "config_old.json");
    config["rope_scaling"] = scaling;
    return config;
  };
  EXPECT_EQ(describe(rope({{"type", "linear"}, {"factor", 2.0}})).rope.kind, RopeDesc::Kind::linear);
  EXPECT_EQ(describe(rope({{"rope_type", "linear"}, {"factor", 2}})).rope.factor, 2);
  for (const char* kind : {"yarn", "dynamic", "longrope"})
    refused(rope({{"rope_type", kind}, {"factor", 2.0}}), {kind, "supported"});
  refused(rope({{"rope_type", "linear"}}), {"factor"});
  refused(rope({{"rope_type", "linear"}, {"factor", 2.0}, {"beta", 1}}), {"beta"});
  refused(rope({{"rope_type", "llama3"}, {"factor", 8.0}}), {"high_freq_factor"});
  refused(rope({{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1}, {"high_freq_factor", 4}}),
          {"original_max_position_embeddings"});
  refused(rope("yarn"), {"rope_scaling"});
  Json both = rope({{"rope_type", "linear"}, {"factor", 2.0}});
  both["rope_parameters"] = {{"rope_type", "default"}};
  refused(both, {"rope_parameters"});
  refused(with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 0}}),
          {"rope_parameters: rope_theta is 0"});
}

TEST(Config, FamiliesAreNamed) {
  for (const char* family : {"mistral", "qwen2", "gpt2"})
    refused(Json{{"model_type", family}}, {family, "supported are llama, qwen3"});
  refused(Json::object(), {"model_type"});
}

TEST(Config, GenerationConfigAddsEnds) {
  const TempFolder folder;
  ModelDesc d;
  d.eos = {2};
  put(folder / "g.json", R"({"eos_token_id":[7,2,9],"do_sample":true})");
  add_generation_ids(folder / "g.json", d);
  EXPECT_EQ(d.eos, (std::vector<int32_t>{2, 7, 9}));
  add_generation_ids(folder / "absent.json", d);
  EXPECT_EQ(d.eos.size(), 3u);
  put(folder / "g.json", R"({"eos_token_id":"x"})");
  expect_error(Category::input, {"g.json", "eos_token_id"},
               [&] { add_generation_ids(folder / "g.json", d); });
}

}  // namespace
}  // namespace qlora
