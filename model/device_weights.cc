#include "model/device_weights.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "memory/file.h"
#include "model/mapped_weights.h"

namespace qlora {
namespace {

constexpr size_t kAlign = 16;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// f(pointer, bytes) for every array that a device needs; the pointers, of a copy of the views, may be moved.
template <class F>
void for_each_array(const ModelDesc& d, WeightView& head, const float*& final_norm,
                    std::vector<BlockWeights>& blocks, F&& f) {
  const auto vector = [&](const float*& p, int64_t size) {
    if (p != nullptr) f(p, static_cast<size_t>(size) * sizeof(float));
  };
  for_each_part(head, f);
  vector(final_norm, d.dim);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int block = static_cast<int>(i);
    for (size_t k = 0; k < kNorms; ++k)
      vector(blocks[i].norm[k], d.norm_size(block, static_cast<NormKind>(k)));
    for (size_t k = 0; k < kLinears; ++k) {
      for_each_part(blocks[i].linear[k], f);
      vector(blocks[i].bias[k], d.out_features(block, static_cast<LinearKind>(k)));
    }
  }
}

std::vector<BlockWeights> blocks_of(const Model& model) {
  std::vector<BlockWeights> blocks;
  for (int i = 0; i < model.block_count(); ++i) blocks.push_back(model.block(i));
  return blocks;
}

size_t map_bytes(const WeightView& w) { return w.code_map == nullptr ? 0 : 256 * sizeof(float); }

}  // namespace

// Bytes through pinned buffers, one being filled while the others are on their way.
class DeviceWeights::Copy {
 public:
  explicit Copy(cuda::Stream& stream) : stream_(stream) {
    for (Buffer& b : buffers_) {
      b.sent.emplace(stream.device());
      b.memory = cuda::Memory::allocate(cuda::MemoryKind::pinned, stream.device(), kBufferBytes);
      if (!b.memory)
        fail(Category::memory, "the system grants no ", kBufferBytes,
             " bytes of pinned memory to send weights to the card through; raise the limit on locked memory "
             "(ulimit -l)");
    }
  }
  void operator()(std::byte* to, const std::byte* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += kBufferBytes) {
      const size_t n = std::min(kBufferBytes, bytes - at);
      Buffer& b = buffers_[turn_++ % buffers_.size()];
      b.sent->synchronize();  // its former bytes
      std::memcpy(b.memory.data(), from + at, n);
      stream_.copy(to + at, b.memory.data(), n);
      b.sent->record(stream_);
    }
  }

 private:
  struct Buffer {
    cuda::Memory memory;
    std::optional<cuda::Event> sent;
  };
  cuda::Stream& stream_;
  std::array<Buffer, kBuffers> buffers_;
  size_t turn_ = 0;
};

size_t DeviceWeights::padding(const Model& model) {
  WeightView head = model.head();
  const float* norm = model.final_norm();
  std::vector<BlockWeights> blocks = blocks_of(model);
  size_t bytes = map_bytes(head);
  for (const BlockWeights& b : blocks)
    for (const WeightView& w : b.linear) bytes += map_bytes(w);
  for_each_array(model.desc(), head, norm, blocks, [&](const auto*, size_t n) { bytes += aligned(n) - n; });
  return bytes;
}

DeviceWeights::DeviceWeights(const Model& model, cuda::Stream& stream)
    : head_(model.head()), final_norm_(model.final_norm()), blocks_(blocks_of(model)) {
  size_t bytes = 0;
  const auto each = [&](auto&& f) { for_each_array(model.desc(), head_, final_norm_, blocks_, f); };
  each([&](const auto*, size_t n) { bytes += aligned(n); });
  memory_ = cuda::Memory::allocate(cuda::MemoryKind::device, stream.device(), bytes);
  if (!memory_)
    fail(Category::memory, "the card has no room for ", bytes,
         " bytes of frozen weights; end what else uses it (nvidia-smi), or take a smaller model");
  const std::vector<const MappedFile*> files = model.checkpoint().files();
  std::byte* to = memory_.data();
  Copy copy(stream);
  try {
    each([&](auto*& p, size_t n) {
      const auto* const from = reinterpret_cast<const std::byte*>(p);
      copy(to, from, n);
      for (const MappedFile* f : files)
        if (f->contains(from)) f->forget(static_cast<size_t>(from - f->data()), n);
      p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(to);
      to += aligned(n);
    });
  } catch (...) {
    stream.synchronize();  // the buffers go
    throw;
  }
  stream.synchronize();
}

}  // namespace qlora
