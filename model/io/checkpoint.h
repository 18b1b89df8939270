#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory/file.h"
#include "model/desc.h"
#include "quant/weight_view.h"

namespace qlora {

// What a base folder says of how its linears were quantized (bitsandbytes' quantization_config).
struct StoredQuantization {
  Format format = Format::nf4;  // nf4, fp4 or int8
  bool double_quant = false;
  int block_size = 64;
};

// A model on disk: a Hugging Face folder (safetensors, single or sharded; plain or bitsandbytes 4-bit) or a
// GGUF file. Mapped, never whole in memory. Tensors are asked for by their Hugging Face names
// ("model.layers.0.self_attn.q_proj.weight") whatever the file's own; rows that a format stores permuted (Q
// and K of a llama GGUF) come back in Hugging Face order.
class Checkpoint {
 public:
  // Opens and checks headers, config and the presence and shape of every tensor that the description needs.
  // Category::input with one line on anything absent, broken or unsupported (an unknown family is named).
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual const std::string& path() const = 0;
  virtual const ModelDesc& desc() const = 0;
  virtual const std::optional<StoredQuantization>& quantization() const = 0;
  virtual bool has(const std::string& tensor) const = 0;
  // Whether kernels can read the stored bytes where they lie: not q and k of a permuted GGUF (rows move), nor
  // data that the file does not align.
  virtual bool in_place(const std::string& tensor) const = 0;
  // Format, shape and the stored bytes, as long as this object lives; data is null without in_place(tensor).
  virtual WeightView view(const std::string& tensor) const = 0;
  // Rows [row, row+count) decoded to fp32 [count, cols]. A GGUF's blocks are decoded in fp32 and rounded to
  // bf16; everything else comes as stored. NaN or Inf is refused, naming tensor and element. Thread-safe.
  virtual void read_rows(const std::string& tensor, int64_t row, int64_t count, float* out) const = 0;
  // The narrowest dtype that holds read_rows' values exactly: bf16 for GGUF blocks, else the stored type.
  virtual DType value_dtype(const std::string& tensor) const = 0;
  // A vector (norm weight, bias) as fp32.
  virtual std::vector<float> read_vector(const std::string& tensor, int64_t size) const = 0;
  // The stored bytes of rows [row, row+count), in Hugging Face order, to `out`
  // (count * stored_row_bytes(tensor)). Only for tensors whose rows are whole bytes: all but 4-bit ones.
  virtual size_t stored_row_bytes(const std::string& tensor) const = 0;
  virtual void read_stored(const std::string& tensor, int64_t row, int64_t count, void* out) const = 0;
  // Refuses NaN and Inf as read_rows does, without decoding what cannot hold them; for tensors that are used
  // in place. Lets go of the pages it read. Thread-safe.
  virtual void check_finite(const std::string& tensor) const = 0;
  // What view()'s pointers lead into, as far as they lead into files.
  virtual std::vector<const MappedFile*> files() const = 0;
  // Lets go of the resident pages of a tensor's stored elements; a later touch reads them again.
  virtual void forget(const std::string& tensor) const = 0;
  // sha256 over names, shapes, types and a digest of every stored byte: the base's identity for resume. Reads
  // the whole model, at memory speed.
  virtual std::string fingerprint() const = 0;
  // config.json as a folder made from this model carries it, without quantization_config; readable by
  // transformers 4 and 5. Category::input when it cannot be told in config.json (a GGUF's rope factors that
  // are no llama3 scaling).
  virtual std::string config_json() const = 0;
};

}  // namespace qlora
