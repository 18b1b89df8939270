#pragma once
#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/weights.h"
#include "train/engine.h"

// A tiny Llama under tests/golden/models, its rows and its PEFT adapters, as the engine takes them.
namespace qlora::testing {

std::shared_ptr<const Model> load_golden(const std::string& folder, const BaseSpec& spec = {});

// A PEFT folder's A and B: layout, and the flat parameters in it.
struct GoldenAdapter {
  AdapterLayout layout;
  std::vector<float> params;
  GoldenAdapter(const ModelDesc& desc, const std::string& folder);
};

// Every linear adapted with one rank.
AdapterLayout layout_of_rank(const ModelDesc& desc, int rank);

// Where a module's A or B stands in PEFT's files, and its part of a flat buffer.
std::string peft_key(const LoraModule& m, bool a);
std::vector<double> part(std::span<const float> flat, const LoraModule& m, bool a);

inline void set_params(Engine& engine, std::span<const float> params) {
  engine.set_params([&](std::span<float> p) { std::copy(params.begin(), params.end(), p.begin()); });
}

// All of its moments, as a checkpoint has them.
std::vector<std::byte> moments_of(Engine& engine);

// Rows of a `tokens` file laid end to end.
Batch batch_of(const std::string& jsonl, const std::vector<size_t>& rows);
BatchMaxima maxima_of(std::span<const Batch> batches);

// Largest difference over largest value expected.
double worst(const std::vector<double>& got, const std::vector<double>& want);

}  // namespace qlora::testing
