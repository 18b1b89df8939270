#include "model/io/peft.h"

#include <cmath>

#include "model/io/checkpoint.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "tests/model/io_support.h"

namespace qlora {
namespace {

using io_test::expect_error;
using io_test::get;
using io_test::kModels;
using io_test::put;
using io_test::TempFolder;

const ModelDesc& llama() {
  static const auto c = Checkpoint::open(kModels + "/llama");
  return c->desc();
}

std::string adapter(const std::string& name) { return kModels + "/llama/" + name; }

struct Loaded {
  AdapterConfig config;
  AdapterLayout layout;
  std::vector<float> params;
  explicit Loaded(const std::string& folder, const ModelDesc& desc = llama())
      : config(read_adapter_config(folder)) {
    layout = AdapterLayout(desc, adapter_choices(config, desc, folder));
    params.resize(static_cast<size_t>(layout.size()));
    load_adapter(folder, layout, params);
  }
};

Json golden_config() { return read_json(adapter("adapter") + "/adapter_config.json"); }

TEST(Peft, ReadsAndWritesTheSameBytes) {
  for (const char* name :
       {"adapter", "adapter_final", "adapters/rslora", "adapters/pattern", "adapters/regex"}) {
    SCOPED_TRACE(name);
    const Loaded a(adapter(name));
    const TempFolder folder;
    save_adapter(folder.path(), a.config, a.layout, a.params, {});
    EXPECT_EQ(get(folder / "adapter_model.safetensors"), get(adapter(name) + "/adapter_model.safetensors"));
    const Json ours = read_json(folder / "adapter_config.json");
    const Json theirs = read_json(adapter(name) + "/adapter_config.json");
    for (const auto& [key, value] : ours.items())
      EXPECT_EQ(value, theirs.contains(key) ? theirs[key] : Json(nullptr)) << key;
    const Loaded again(folder.path());
    EXPECT_EQ(again.params, a.params);
  }
}

TEST(Peft, ScalesAndPatterns) {
  const Loaded plain(adapter("adapter"));
  for (const LoraModule& m : plain.layout.modules()) EXPECT_EQ(m.scale, 2.0f);
  const Loaded rslora(adapter("adapters/rslora"));
  for (const LoraModule& m : rslora.layout.modules()) EXPECT_EQ(m.scale, 4.0f);
  // rank_pattern q_proj 8, layers.1.mlp.down_proj 2, model.layers.2.self_attn.o_proj 1;
  // alpha_pattern v_proj 16, .*\.mlp\..* 3.
  const Loaded p(adapter("adapters/pattern"));
  EXPECT_EQ(p.layout.find(0, LinearKind::q)->rank, 8);
  EXPECT_EQ(p.layout.find(0, LinearKind::q)->scale, 1.0f);
  EXPECT_EQ(p.layout.find(1, LinearKind::down)->rank, 2);
  EXPECT_EQ(p.layout.find(1, LinearKind::down)->scale, 1.5f);
  EXPECT_EQ(p.layout.find(0, LinearKind::down)->scale, 0.75f);
  EXPECT_EQ(p.layout.find(2, LinearKind::o)->rank, 1);
  EXPECT_EQ(p.layout.find(1, LinearKind::o)->rank, 4);
  EXPECT_EQ(p.layout.find(2, LinearKind::v)->scale, 4.0f);
  const Loaded r(adapter("adapters/regex"));
  EXPECT_EQ(r.layout.modules().size(), 6u);
  EXPECT_EQ(r.layout.find(1, LinearKind::q), nullptr);
}

TEST(Peft, TargetsAndExclusions) {
  AdapterConfig c;
  const auto count = [&] { return adapter_choices(c, llama(), "x").size(); };
  c.targets.names = {"q_proj", "mlp.up_proj", "model.layers.0.self_attn.o_proj"};
  EXPECT_EQ(count(), 7u);
  c.excluded.names = {"layers.1.self_attn.q_proj"};
  EXPECT_EQ(count(), 6u);
  c.excluded = {{}, ".*up_proj"};
  EXPECT_EQ(count(), 4u);
  c.layers = {0};
  EXPECT_EQ(count(), 2u);
  c = AdapterConfig();
  c.targets.names = {"proj"};  // a suffix begins at a dot
  expect_error(Category::input, {"match no linear"}, count);
  c.targets = {{}, "layers.0.*"};  // a regular expression is for the whole name
  expect_error(Category::input, {"match no linear"}, count);
  c.targets = {{}, "(q_proj"};
  expect_error(Category::input, {"(q_proj", "broken"}, count);
  c.targets = {{}, "(([a-z._0-9]*)*)*[A-Z]"};
  expect_error(Category::input, {"too many steps"}, count);
}

TEST(Peft, TargetModulesOption) {
  const auto names = [](const std::string& o) { return ModuleTargets::parse(o, llama()).names; };
  EXPECT_EQ(names("all-linear"), (std::vector<std::string>{"down_proj", "gate_proj", "k_proj", "o_proj",
                                                           "q_proj", "up_proj", "v_proj"}));
  EXPECT_EQ(names("q_proj, self_attn.v_proj"), (std::vector<std::string>{"q_proj", "self_attn.v_proj"}));
  EXPECT_EQ(ModuleTargets::parse(".*\\.(q|v)_proj", llama()).regex, ".*\\.(q|v)_proj");
  const auto refuse = [](const std::string& o, std::initializer_list<std::string> words) {
    expect_error(Category::usage, words, [&] { ModuleTargets::parse(o, llama()); });
  };
  refuse("q_proj,qq_proj", {"\"qq_proj\"", "gate_proj", "model.layers.0"});
  refuse("lm_head", {"lm_head"});
  refuse("q_proj,", {"\"\""});
  refuse("", {"\"\""});
  refuse("(q|v)_proj", {"matches no linear"});
  refuse("(q", {"broken"});
}

TEST(Peft, UnsupportedAdaptersAreNamed) {
  expect_error(Category::input, {"use_dora", "DoRA"}, [] { read_adapter_config(adapter("adapters/dora")); });
  expect_error(Category::input, {"modules_to_save", "lm_head"},
               [] { read_adapter_config(adapter("adapters/lm_head")); });
  const TempFolder folder;
  const auto refuse = [&](const char* key, const Json& value) {
    Json c = golden_config();
    c[key] = value;
    put(folder / "adapter_config.json", c.dump());
    expect_error(Category::input, {"adapter_config.json", key}, [&] { read_adapter_config(folder.path()); });
  };
  refuse("peft_type", "IA3");
  refuse("bias", "all");
  refuse("init_lora_weights", "pissa");
  refuse("new_key", 1);
  refuse("r", 0);
  refuse("r", "4");
  refuse("lora_dropout", 1.0);
  refuse("target_modules", nullptr);
  refuse("target_modules", Json::array({1}));
  refuse("rank_pattern", Json{{"q_proj", 0}});
  refuse("layer_replication", Json::array({Json::array({0, 1})}));
  refuse("layers_pattern", "h");
  expect_error(Category::input, {"adapter_config.json"}, [&] { read_adapter_config(folder / "absent"); });
}

TEST(Peft, TensorsMustFit) {
  const Loaded a(adapter("adapter"));
  const TempFolder folder;
  const std::string q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
  const auto write = [&](std::vector<TensorSpec> specs, float value) {
    SafetensorsWriter w(folder / "adapter_model.safetensors", specs);
    for (const TensorSpec& t : w.order()) {
      const std::vector<float> data(t.bytes() / 4, value);
      w.write(t.name, data.data(), t.bytes());
    }
    w.commit();
  };
  std::vector<TensorSpec> specs;
  const SafetensorsFile golden(adapter("adapter") + "/adapter_model.safetensors");
  for (const TensorInfo& t : golden.tensors()) specs.push_back({t.name, t.dtype, t.shape});
  std::vector<float> params(a.params.size());
  const auto refuse = [&](std::initializer_list<std::string> words) {
    expect_error(Category::input, words, [&] { load_adapter(folder.path(), a.layout, params); });
  };
  write(specs, NAN);
  refuse({"lora_A", "nan"});
  std::vector<TensorSpec> changed = specs;
  std::erase_if(changed, [&](const TensorSpec& t) { return t.name == q; });
  write(changed, 1);
  refuse({q, "absent"});
  changed.push_back({q, DType::f32, {8, 128}});
  write(changed, 1);
  refuse({q, "[8, 128]", "[4, 128]"});
  changed = specs;
  changed.push_back({"base_model.model.lm_head.weight", DType::f32, {1}});
  write(changed, 1);
  refuse({"lm_head.weight", "no place"});
  // bf16 and fp16 come in as well.
  for (const DType t : {DType::bf16, DType::f16}) {
    changed = specs;
    for (TensorSpec& s : changed) s.dtype = t;
    SafetensorsWriter w(folder / "adapter_model.safetensors", changed);
    const uint16_t bits = t == DType::bf16 ? bf16(0.25f).bits : f16(0.25f).bits;
    for (const TensorSpec& s : w.order()) {
      const std::vector<uint16_t> data(s.bytes() / 2, bits);
      w.write(s.name, data.data(), s.bytes());
    }
    w.commit();
    load_adapter(folder.path(), a.layout, params);
    EXPECT_EQ(params, std::vector<float>(params.size(), 0.25f));
  }
}

TEST(Peft, ModelCardNamesNoLocalPath) {
  const Loaded a(adapter("adapter"));
  const TempFolder folder;
  save_adapter(folder.path(), a.config, a.layout, a.params,
               {"/home/someone/models/base-7b/",
                "/home/someone/rows.jsonl",
                "abc123",
                {{"lr", "1e-3"}},
                {{"loss", "0.5"}}});
  const std::string card = get(folder / "README.md");
  EXPECT_EQ(card.find("someone"), std::string::npos) << card;
  for (const char* part :
       {"base-7b", "rows.jsonl", "abc123", "| lr | 1e-3 |", "| loss | 0.5 |", "library_name: peft"})
    EXPECT_NE(card.find(part), std::string::npos) << part;
  EXPECT_EQ(card.find("base_model:"), std::string::npos);  // only a hub id is one
  save_adapter(folder.path(), a.config, a.layout, a.params, {"org/name", "rows.jsonl", "abc123", {}, {}});
  EXPECT_NE(get(folder / "README.md").find("base_model: org/name\n"), std::string::npos);
}

}  // namespace
}  // namespace qlora
