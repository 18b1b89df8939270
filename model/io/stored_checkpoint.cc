#include "model/io/stored_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "memory/error.h"
#include "quant/blockwise8.h"

namespace qlora {
namespace {

constexpr int64_t kPieceElements = int64_t{1} << 16;
// A reader of a whole tensor that nobody uses yet lets go of its pages after so many bytes.
constexpr size_t kPieceBytes = size_t{8} << 20;

DType dtype_of_format(Format f) {
  if (f == Format::f16) return DType::f16;
  if (f == Format::bf16) return DType::bf16;
  return DType::f32;
}

bool is_4bit(Format f) { return f == Format::nf4 || f == Format::fp4; }

size_t row_bytes(const WeightView& w) {
  const auto cols = static_cast<size_t>(w.cols);
  switch (w.format) {
    case Format::f32:
      return cols * 4;
    case Format::f16:
    case Format::bf16:
      return cols * 2;
    case Format::int8:
      return cols;
    case Format::q4_0:
      return cols / 32 * 18;
    case Format::q4_1:
      return cols / 32 * 20;
    case Format::q8_0:
      return cols / 32 * 34;
    case Format::nf4:
    case Format::fp4:
      break;
  }
  check(false, "rows of a 4-bit matrix are no whole bytes");
  return 0;
}

uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }

}  // namespace

uint64_t fast_digest(const std::byte* data, size_t bytes) {
  // Four lanes of xxHash64's round: multiply, rotate, multiply.
  constexpr uint64_t kA = 0x9e3779b185ebca87u, kB = 0xc2b2ae3d27d4eb4fu, kC = 0x165667b19e3779f9u;
  uint64_t lane[4] = {kA, kB, kC, bytes};
  const auto mix = [&](uint64_t& h, uint64_t word) { h = rotate(h + word * kB, 31) * kA; };
  size_t at = 0;
  for (size_t end = 0; end + 32 <= bytes;) {
    const size_t begin = at;
    end = std::min(bytes / 32 * 32, begin + kPieceBytes);
    for (; at < end; at += 32) {
      uint64_t w[4];
      std::memcpy(w, data + at, 32);
      for (int i = 0; i < 4; ++i) mix(lane[i], w[i]);
    }
    forget_pages(data + begin, at - begin);
  }
  for (; at < bytes; ++at) mix(lane[0], static_cast<uint64_t>(data[at]));
  uint64_t h = bytes;
  for (const uint64_t l : lane) h = (h ^ rotate(l * kB, 31) * kA) * kA + kC;
  h = (h ^ h >> 33) * kB;
  h = (h ^ h >> 29) * kC;
  return h ^ h >> 32;
}

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status))
    fail(Category::input, path, ": no such model; name a model folder or a .gguf file");
  if (fs::is_directory(status)) return open_hf_checkpoint(path);
  return open_gguf_checkpoint(path);
}

std::vector<ExpectedTensor> expected_tensors(const ModelDesc& desc) {
  std::vector<ExpectedTensor> out;
  const auto matrix = [&](const std::string& module, int64_t rows, int64_t cols) {
    out.push_back({module, "weight", rows, cols, false, false, 0});
  };
  const auto vector = [&](const std::string& module, int64_t size) {
    out.push_back({module, "weight", 1, size, true, false, 0});
  };
  matrix(kEmbedName, desc.vocab, desc.dim);
  for (int b = 0; b < static_cast<int>(desc.blocks.size()); ++b) {
    const auto norm = [&](NormKind k) {
      if (const int64_t size = desc.norm_size(b, k); size > 0) vector(norm_name(b, k), size);
    };
    norm(NormKind::attention);
    for (int i = 0; i < kLinears; ++i) {
      const auto k = static_cast<LinearKind>(i);
      const BlockDesc& block = desc.blocks[static_cast<size_t>(b)];
      const int heads = k == LinearKind::q ? block.q_heads : k == LinearKind::k ? block.kv_heads : 0;
      const int64_t rows = desc.out_features(b, k);
      out.push_back({linear_name(b, k), "weight", rows, desc.in_features(b, k), false, true, heads});
      if (desc.has_bias(b, k)) out.push_back({linear_name(b, k), "bias", 1, rows, true, false, heads});
      if (k == LinearKind::v) norm(NormKind::q), norm(NormKind::k);
      if (k == LinearKind::o) norm(NormKind::mlp);
    }
  }
  vector(kFinalNormName, desc.dim);
  if (!desc.tied) matrix(kHeadName, desc.vocab, desc.dim);
  return out;
}

const StoredTensor& StoredCheckpoint::at(const std::string& tensor) const {
  const auto it = tensors_.find(tensor);
  check(it != tensors_.end(), path_, ": tensor ", tensor, " is asked for, which the model does not have");
  return it->second;
}

bool StoredCheckpoint::in_place(const std::string& tensor) const { return at(tensor).in_place; }

WeightView StoredCheckpoint::view(const std::string& tensor) const {
  const StoredTensor& t = at(tensor);
  WeightView view = t.view;
  if (!t.in_place) view.data = nullptr;
  return view;
}

int64_t StoredCheckpoint::stored_index(const StoredTensor& t, int64_t index) {
  if (t.permuted_heads == 0) return index;
  const int64_t head = (t.vector ? t.view.cols : t.view.rows) / t.permuted_heads;
  const int64_t i = index % head, half = head / 2;
  return index - i + 2 * (i % half) + i / half;
}

void StoredCheckpoint::not_finite(const std::string& tensor, const StoredTensor& t, int64_t row, int64_t col,
                                  float value) {
  const std::string place = t.vector ? cat("element ", col) : cat("row ", row, ", column ", col);
  fail(Category::input, t.file, ": tensor ", tensor, ": ", place, " is ", value,
       "; the weights are damaged: fetch or make them again");
}

void StoredCheckpoint::read_rows(const std::string& tensor, int64_t row, int64_t count, float* out) const {
  const StoredTensor& t = at(tensor);
  const int64_t cols = t.view.cols;
  check(row >= 0 && count >= 0 && row <= t.view.rows && count <= t.view.rows - row, tensor, ": rows ", row,
        "+", count, " of ", t.view.rows);
  for (int64_t r = 0; r < count; ++r) {
    float* to = out + r * cols;
    decode_row(t.view, t.vector ? 0 : stored_index(t, row + r), 0, cols, to);
    if (t.round_bf16)
      for (int64_t c = 0; c < cols; ++c) to[c] = round_to(DType::bf16, to[c]);
    const int64_t bad = first_non_finite(to, cols);
    if (bad < cols) not_finite(tensor, t, row + r, bad, to[bad]);
  }
}

DType StoredCheckpoint::value_dtype(const std::string& tensor) const {
  const StoredTensor& t = at(tensor);
  return t.round_bf16 ? DType::bf16 : dtype_of_format(t.view.format);
}

std::vector<float> StoredCheckpoint::read_vector(const std::string& tensor, int64_t size) const {
  const StoredTensor& t = at(tensor);
  check(t.vector && t.view.cols == size, tensor, " is no vector of ", size);
  std::vector<float> stored(static_cast<size_t>(size)), out(static_cast<size_t>(size));
  read_rows(tensor, 0, 1, stored.data());
  for (int64_t i = 0; i < size; ++i)
    out[static_cast<size_t>(i)] = stored[static_cast<size_t>(stored_index(t, i))];
  return out;
}

size_t StoredCheckpoint::stored_row_bytes(const std::string& tensor) const {
  return row_bytes(at(tensor).view);
}

void StoredCheckpoint::read_stored(const std::string& tensor, int64_t row, int64_t count, void* out) const {
  const StoredTensor& t = at(tensor);
  const size_t bytes = row_bytes(t.view);
  check(!t.vector && row >= 0 && count >= 0 && row <= t.view.rows && count <= t.view.rows - row, tensor,
        ": stored rows ", row, "+", count, " of ", t.view.rows);
  for (int64_t r = 0; r < count; ++r)
    std::memcpy(
        static_cast<std::byte*>(out) + static_cast<size_t>(r) * bytes,
        static_cast<const std::byte*>(t.view.data) + static_cast<size_t>(stored_index(t, row + r)) * bytes,
        bytes);
}

void StoredCheckpoint::forget(const std::string& tensor) const {
  const WeightView& w = at(tensor).view;
  forget_pages(w.data, static_cast<size_t>(w.code_bytes()));
  if (w.absmax_codes != nullptr)
    forget_pages(w.absmax_codes, static_cast<size_t>((w.elements() + w.block_size - 1) / w.block_size));
}

void StoredCheckpoint::check_finite(const std::string& tensor) const {
  const StoredTensor& t = at(tensor);
  const WeightView& w = t.view;
  if (is_4bit(w.format)) {  // the codes cannot be NaN, only the scales
    const int64_t blocks = (w.elements() + w.block_size - 1) / w.block_size;
    for (int64_t b = 0; b < blocks; ++b)
      if (const float s = w.block_scale(b); !is_finite(s))
        not_finite(tensor, t, b * w.block_size / w.cols, b * w.block_size % w.cols, s);
    forget(tensor);
    return;
  }
  if (w.format == Format::int8) {
    for (int64_t r = 0; r < w.rows; ++r)
      if (const float s = 128.0f * w.absmax[r]; !is_finite(s)) not_finite(tensor, t, r, 0, s);
    return;
  }
  const int64_t rows = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, w.cols));
  std::vector<float> piece(static_cast<size_t>(std::min(rows, w.rows) * w.cols));
  const size_t stored = row_bytes(w);
  size_t begin = 0;
  for (int64_t r = 0; r < w.rows; r += rows) {
    read_rows(tensor, r, std::min(rows, w.rows - r), piece.data());
    const size_t end = static_cast<size_t>(std::min(w.rows, r + rows)) * stored;
    if (end - begin < kPieceBytes && r + rows < w.rows) continue;
    forget_pages(static_cast<const std::byte*>(w.data) + begin, end - begin);
    begin = end;
  }
}

}  // namespace qlora
