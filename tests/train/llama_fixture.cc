#include "tests/train/llama_fixture.h"

#include <algorithm>
#include <cmath>

#include "model/io/json.h"
#include "tests/support/golden.h"
#include "tests/support/golden_tensors.h"

namespace qlora::testing {

std::shared_ptr<const Model> load_golden(const std::string& folder, const BaseSpec& spec) {
  return Model::load(Checkpoint::open(golden::path("models/" + folder)), spec, 2);
}

GoldenAdapter::GoldenAdapter(const ModelDesc& desc, const std::string& folder) {
  const Json config = read_json(golden::path("models/" + folder + "/adapter_config.json"));
  const golden::Tensors t("models/" + folder + "/adapter_model.safetensors");
  std::vector<LoraChoice> choices;
  for (int b = 0; b < static_cast<int>(desc.blocks.size()); ++b)
    for (int k = 0; k < kLinears; ++k) {
      const auto kind = static_cast<LinearKind>(k);
      const std::string key = "base_model.model." + linear_name(b, kind) + ".lora_A.weight";
      if (!t.has(key)) continue;
      const int rank = static_cast<int>(t.shape(key)[0]);
      choices.push_back({b, kind, rank, static_cast<float>(config["lora_alpha"].get<double>() / rank)});
    }
  layout = AdapterLayout(desc, choices);
  params.resize(static_cast<size_t>(layout.size()));
  for (const LoraModule& m : layout.modules())
    for (bool a : {true, false}) {
      const std::vector<float> v = t.f32(peft_key(m, a));
      std::copy(v.begin(), v.end(), params.begin() + (a ? m.a : m.b));
    }
}

std::string peft_key(const LoraModule& m, bool a) {
  return "base_model.model." + linear_name(m.block, m.kind) + (a ? ".lora_A.weight" : ".lora_B.weight");
}

std::vector<double> part(std::span<const float> flat, const LoraModule& m, bool a) {
  const auto p = flat.subspan(static_cast<size_t>(a ? m.a : m.b),
                              static_cast<size_t>(a ? m.rank * m.in : m.out * m.rank));
  return {p.begin(), p.end()};
}

AdapterLayout layout_of_rank(const ModelDesc& desc, int rank) {
  std::vector<LoraChoice> choices;
  for (int block = 0; block < static_cast<int>(desc.blocks.size()); ++block)
    for (int k = 0; k < kLinears; ++k) choices.push_back({block, static_cast<LinearKind>(k), rank, 1});
  return {desc, choices};
}

std::vector<std::byte> moments_of(Engine& engine) {
  std::vector<std::byte> out;
  engine.save_moments([&](MomentPart, std::span<const std::byte> bytes) {
    out.insert(out.end(), bytes.begin(), bytes.end());
  });
  return out;
}

Batch batch_of(const std::string& jsonl, const std::vector<size_t>& rows) {
  const std::vector<std::string> text = test::lines(test::read_golden(jsonl));
  Batch b;
  b.cu_seqlens.push_back(0);
  for (size_t r : rows) {
    const Json row = parse_json(text.at(r), jsonl);
    const auto ids = row["input_ids"].get<std::vector<int32_t>>(),
               labels = row["labels"].get<std::vector<int32_t>>();
    for (size_t i = 0; i < ids.size(); ++i) {
      const int32_t target = i + 1 < ids.size() ? std::max(labels[i + 1], -1) : -1;
      if (target >= 0) b.loss_rows.push_back(static_cast<int32_t>(b.ids.size()));
      b.ids.push_back(ids[i]);
      b.targets.push_back(target);
      b.positions.push_back(static_cast<int32_t>(i));
      b.places.push_back((static_cast<uint64_t>(r) << 32) + i);
    }
    b.cu_seqlens.push_back(static_cast<int32_t>(b.ids.size()));
  }
  return b;
}

BatchMaxima maxima_of(std::span<const Batch> batches) {
  BatchMaxima m;
  for (const Batch& b : batches) {
    m.tokens = std::max(m.tokens, b.tokens());
    m.documents = std::max(m.documents, b.documents());
    m.loss_rows = std::max(m.loss_rows, static_cast<int64_t>(b.loss_rows.size()));
    for (size_t d = 1; d < b.cu_seqlens.size(); ++d)
      m.longest = std::max<int64_t>(m.longest, b.cu_seqlens[d] - b.cu_seqlens[d - 1]);
  }
  return m;
}

double worst(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return INFINITY;
  double difference = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    difference = std::max(difference, std::abs(got[i] - want[i]));
    largest = std::max(largest, std::abs(want[i]));
  }
  return difference / largest;
}

}  // namespace qlora::testing
