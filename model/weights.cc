#include "model/weights.h"

#include <algorithm>

namespace qlora {
namespace {

std::string weight_of(const std::string& module) { return module + ".weight"; }

const char* name_of(Format f) {
  switch (f) {
    case Format::f32:
      return "fp32";
    case Format::f16:
      return "fp16";
    case Format::bf16:
      return "bf16";
    case Format::nf4:
      return "nf4";
    case Format::fp4:
      return "fp4";
    case Format::int8:
      return "int8";
    case Format::q4_0:
      return "q4_0";
    case Format::q4_1:
      return "q4_1";
    case Format::q8_0:
      return "q8_0";
  }
  return "?";
}

}  // namespace

std::byte* Model::own(size_t bytes) {
  // Uninitialized: whoever asks writes every byte, and pages become resident only then.
  owned_.emplace_back(new std::byte[std::max<size_t>(bytes, 1)]);
  owned_bytes_ += bytes;
  return owned_.back().get();
}

const float* Model::vector_of(const std::string& tensor, int64_t size) {
  const std::vector<float> v = checkpoint_->read_vector(tensor, size);
  auto* p = reinterpret_cast<float*>(own(v.size() * sizeof(float)));
  std::copy(v.begin(), v.end(), p);
  return p;
}

WeightView Model::in_place_or_copied(const std::string& tensor) {
  checkpoint_->check_finite(tensor);
  WeightView w = checkpoint_->view(tensor);
  if (checkpoint_->in_place(tensor)) {
    mapped_bytes_ += static_cast<size_t>(w.stored_bytes());
    return w;
  }
  // Rows that the file holds in another order.
  std::byte* data = own(static_cast<size_t>(w.rows) * checkpoint_->stored_row_bytes(tensor));
  checkpoint_->read_stored(tensor, 0, w.rows, data);
  w.data = data;
  return w;
}

WeightView Model::quantized(const std::string& tensor, const QuantizedSpec& spec, int threads) {
  const WeightView shape = checkpoint_->view(tensor);
  const QuantizedSizes n = sizes_of(spec, shape.rows, shape.cols);
  QuantizedParts parts;
  parts.data = own(static_cast<size_t>(n.data));
  parts.absmax = reinterpret_cast<float*>(own(static_cast<size_t>(n.absmax) * sizeof(float)));
  parts.absmax_codes = reinterpret_cast<uint8_t*>(own(static_cast<size_t>(n.absmax_codes)));
  parts.nested_absmax = reinterpret_cast<float*>(own(static_cast<size_t>(n.nested_absmax) * sizeof(float)));
  const RowReader read = [&](int64_t row, int64_t count, float* out) {
    checkpoint_->read_rows(tensor, row, count, out);
  };
  return quantize_matrix(tensor, spec, shape.rows, shape.cols, read, parts, threads);
}

std::shared_ptr<const Model> Model::load(std::shared_ptr<const Checkpoint> checkpoint, const BaseSpec& spec,
                                         int threads, const std::function<void(int, int)>& progress) {
  std::shared_ptr<Model> m(new Model(std::move(checkpoint)));
  const ModelDesc& d = m->desc();
  m->embed_ = m->in_place_or_copied(weight_of(kEmbedName));
  m->head_ = d.tied ? m->embed_ : m->in_place_or_copied(weight_of(kHeadName));
  m->final_norm_ = m->checkpoint_->read_vector(weight_of(kFinalNormName), d.dim);
  const int blocks = static_cast<int>(d.blocks.size());
  m->blocks_.resize(d.blocks.size());
  for (int i = 0; i < blocks; ++i) {
    BlockWeights& b = m->blocks_[static_cast<size_t>(i)];
    b.norm1 = m->vector_of(weight_of(norm_name(i, 0)), d.dim);
    b.norm2 = m->vector_of(weight_of(norm_name(i, 1)), d.dim);
    for (int k = 0; k < kLinears; ++k) {
      const auto kind = static_cast<LinearKind>(k);
      const std::string name = linear_name(i, kind);
      b.linear[static_cast<size_t>(k)] = spec.quantize
                                             ? m->quantized(weight_of(name), *spec.quantize, threads)
                                             : m->in_place_or_copied(weight_of(name));
      if (d.has_bias(i, kind))
        b.bias[static_cast<size_t>(k)] = m->vector_of(name + ".bias", d.out_features(i, kind));
    }
    if (progress) progress(i + 1, blocks);
  }
  return m;
}

RopeTables Model::rope_tables(int64_t positions) const {
  return {desc().rope, desc().blocks.front().rotary_dims, positions};
}

std::string Model::storage() const {
  const WeightView& w = blocks_.front().linear.front();
  std::string s = name_of(w.format);
  if (w.absmax_codes != nullptr) s += ", double-quantized";
  if (w.format == Format::nf4 || w.format == Format::fp4) s += cat(", blocks of ", w.block_size);
  return s;
}

}  // namespace qlora
