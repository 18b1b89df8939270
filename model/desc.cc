#include "model/desc.h"

#include <array>

namespace qlora {

int64_t ModelDesc::out_features(int block, LinearKind k) const {
  const BlockDesc& b = blocks[block];
  switch (k) {
    case LinearKind::q:
      return b.q_dim();
    case LinearKind::k:
    case LinearKind::v:
      return b.kv_dim();
    case LinearKind::gate:
    case LinearKind::up:
      return b.ff;
    case LinearKind::o:
    case LinearKind::down:
      return b.dim;
  }
  return 0;
}

int64_t ModelDesc::in_features(int block, LinearKind k) const {
  const BlockDesc& b = blocks[block];
  switch (k) {
    case LinearKind::o:
      return b.q_dim();
    case LinearKind::down:
      return b.ff;
    default:
      return b.dim;
  }
}

bool ModelDesc::has_bias(int block, LinearKind k) const {
  const BlockDesc& b = blocks[block];
  switch (k) {
    case LinearKind::q:
    case LinearKind::k:
    case LinearKind::v:
      return b.qkv_bias;
    case LinearKind::o:
      return b.o_bias;
    default:
      return b.mlp_bias;
  }
}

int64_t ModelDesc::norm_size(int block, NormKind k) const {
  const BlockDesc& b = blocks[block];
  if (k == NormKind::attention || k == NormKind::mlp) return b.dim;
  return b.qk_norm ? b.head_dim : 0;
}

std::string linear_name(int block, LinearKind k) {
  static constexpr std::array<const char*, kLinears> names = {
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
      "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return "model.layers." + std::to_string(block) + "." + names[static_cast<size_t>(k)];
}

std::string norm_name(int block, NormKind k) {
  static constexpr std::array<const char*, kNorms> names = {"input_layernorm", "post_attention_layernorm",
                                                            "self_attn.q_norm", "self_attn.k_norm"};
  return "model.layers." + std::to_string(block) + "." + names[static_cast<size_t>(k)];
}

}  // namespace qlora
