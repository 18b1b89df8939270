#pragma once
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory/file.h"
#include "model/io/checkpoint.h"

namespace qlora {

// A tensor that a description needs: a matrix [rows, cols], or a vector [cols] (rows is 1).
struct ExpectedTensor {
  std::string module;  // Hugging Face name without its last part: "model.layers.0.self_attn.q_proj"
  const char* leaf;    // "weight" or "bias"
  int64_t rows, cols;
  bool vector;
  bool linear;         // a linear of a block, which a folder may hold quantized
  int permuted_heads;  // of Q and K: in how many heads a permuting format moves the rows; else 0
  std::string name() const { return module + "." + leaf; }
};
std::vector<ExpectedTensor> expected_tensors(const ModelDesc& desc);

// Where an expected tensor lies.
struct StoredTensor {
  WeightView view;  // vectors are [1, n]
  bool vector = false;
  bool in_place = true;     // false: rows are permuted, or elements are not aligned to their type
  bool round_bf16 = false;  // a GGUF's blocks
  int permuted_heads = 0;   // rows (elements of a vector) are stored as (head, half, 2)
  std::string file;         // it lies in
};

// What the readers of both kinds of file share: tensors by Hugging Face names over mapped bytes.
class StoredCheckpoint : public Checkpoint {
 public:
  const std::string& path() const override { return path_; }
  const ModelDesc& desc() const override { return desc_; }
  const std::optional<StoredQuantization>& quantization() const override { return quantization_; }
  bool has(const std::string& tensor) const override { return tensors_.count(tensor) != 0; }
  bool in_place(const std::string& tensor) const override;
  WeightView view(const std::string& tensor) const override;
  void read_rows(const std::string& tensor, int64_t row, int64_t count, float* out) const override;
  DType value_dtype(const std::string& tensor) const override;
  std::vector<float> read_vector(const std::string& tensor, int64_t size) const override;
  size_t stored_row_bytes(const std::string& tensor) const override;
  void read_stored(const std::string& tensor, int64_t row, int64_t count, void* out) const override;
  void check_finite(const std::string& tensor) const override;
  void forget(const std::string& tensor) const override;

 protected:
  const StoredTensor& at(const std::string& tensor) const;
  // The rows of a matrix, the elements of a vector: what a permutation moves and an index names.
  static int64_t stored_index(const StoredTensor& t, int64_t index);
  [[noreturn]] static void not_finite(const std::string& tensor, const StoredTensor& t, int64_t row,
                                      int64_t col, float value);

  std::string path_;
  ModelDesc desc_;
  std::optional<StoredQuantization> quantization_;
  std::unordered_map<std::string, StoredTensor> tensors_;
};

// A digest of bytes at memory speed; not cryptographic, but any accidental change shows.
// The bytes are mapped ones: their pages are let go of.
uint64_t fast_digest(const std::byte* data, size_t bytes);

std::unique_ptr<Checkpoint> open_hf_checkpoint(const std::string& folder);
std::unique_ptr<Checkpoint> open_gguf_checkpoint(const std::string& path);

}  // namespace qlora
