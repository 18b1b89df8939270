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
  // Uninitialized: fill() writes every byte, and pages become resident only then.
  owned_.emplace_back(new std::byte[std::max<size_t>(bytes, 1)]);
  return owned_.back().get();
}

const float* Model::outline_vector(int block, const std::string& tensor, int64_t size) {
  const size_t bytes = static_cast<size_t>(size) * sizeof(float);
  auto* p = reinterpret_cast<float*>(own(bytes));
  parts_.push_back({block, 0, bytes, false});
  tasks_.push_back({block, [this, p, tensor, size](int) {
                      const std::vector<float> v = checkpoint_->read_vector(tensor, size);
                      std::copy(v.begin(), v.end(), p);
                    }});
  return p;
}

void Model::outline_quantized(WeightView& w, const std::string& tensor, const QuantizedSpec& spec) {
  const WeightView shape = w;
  const QuantizedSizes n = sizes_of(spec, shape.rows, shape.cols);
  QuantizedParts parts;
  parts.data = own(static_cast<size_t>(n.data));
  parts.absmax = reinterpret_cast<float*>(own(static_cast<size_t>(n.absmax) * sizeof(float)));
  parts.absmax_codes = reinterpret_cast<uint8_t*>(own(static_cast<size_t>(n.absmax_codes)));
  parts.nested_absmax = reinterpret_cast<float*>(own(static_cast<size_t>(n.nested_absmax) * sizeof(float)));
  w = view_of(spec, shape.rows, shape.cols, parts);
  tasks_.push_back({-1, [this, &w, tensor, spec, parts](int threads) {
                      const RowReader read = [&](int64_t row, int64_t count, float* out) {
                        checkpoint_->read_rows(tensor, row, count, out);
                      };
                      w = quantize_matrix(tensor, spec, w.rows, w.cols, read, parts, threads);
                      checkpoint_->forget(tensor);
                    }});
}

// `w` must stay where it is.
void Model::outline_matrix(WeightView& w, int block, const std::string& tensor,
                           const std::optional<QuantizedSpec>& spec) {
  w = checkpoint_->view(tensor);
  const bool in_place = !spec && checkpoint_->in_place(tensor);
  if (spec) {
    outline_quantized(w, tensor, *spec);
  } else if (in_place) {
    tasks_.push_back({block, [this, tensor](int) { checkpoint_->check_finite(tensor); }});
  } else {
    // Rows that the file holds in another order.
    std::byte* const data = own(static_cast<size_t>(w.rows) * checkpoint_->stored_row_bytes(tensor));
    w.data = data;
    tasks_.push_back({block, [this, &w, tensor, data](int) {
                        checkpoint_->check_finite(tensor);
                        checkpoint_->read_stored(tensor, 0, w.rows, data);
                        checkpoint_->forget(tensor);
                      }});
  }
  tasks_.back().block = block;
  const auto codes = static_cast<size_t>(w.code_bytes());
  parts_.push_back({block, codes, static_cast<size_t>(w.stored_bytes()) - codes, in_place});
}

std::shared_ptr<Model> Model::outline(std::shared_ptr<const Checkpoint> checkpoint, const BaseSpec& spec) {
  std::shared_ptr<Model> m(new Model(std::move(checkpoint)));
  const ModelDesc& d = m->desc();
  m->outline_matrix(m->embed_, -1, weight_of(kEmbedName), {});
  m->parts_.back().looked_up = !d.tied;
  if (!d.tied) m->outline_matrix(m->head_, -1, weight_of(kHeadName), {});
  m->final_norm_ = m->outline_vector(-1, weight_of(kFinalNormName), d.dim);
  m->blocks_.resize(d.blocks.size());
  for (int i = 0; i < m->block_count(); ++i) {
    BlockWeights& b = m->blocks_[static_cast<size_t>(i)];
    for (int k = 0; k < kNorms; ++k) {
      const auto kind = static_cast<NormKind>(k);
      if (const int64_t size = d.norm_size(i, kind); size > 0)
        b.norm[static_cast<size_t>(k)] = m->outline_vector(i, weight_of(norm_name(i, kind)), size);
    }
    for (int k = 0; k < kLinears; ++k) {
      const auto kind = static_cast<LinearKind>(k);
      const std::string name = linear_name(i, kind);
      m->outline_matrix(b.linear[static_cast<size_t>(k)], i, weight_of(name), spec.quantize);
      if (d.has_bias(i, kind))
        b.bias[static_cast<size_t>(k)] = m->outline_vector(i, name + ".bias", d.out_features(i, kind));
    }
  }
  return m;
}

void Model::fill(int threads, const std::function<void(int, int)>& progress) {
  for (size_t i = 0; i < tasks_.size(); ++i) {
    tasks_[i].run(threads);
    if (progress && tasks_[i].block >= 0 &&
        (i + 1 == tasks_.size() || tasks_[i + 1].block != tasks_[i].block))
      progress(tasks_[i].block + 1, block_count());
  }
  tasks_.clear();
}

std::shared_ptr<const Model> Model::load(std::shared_ptr<const Checkpoint> checkpoint, const BaseSpec& spec,
                                         int threads, const std::function<void(int, int)>& progress) {
  const std::shared_ptr<Model> m = outline(std::move(checkpoint), spec);
  m->fill(threads, progress);
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
