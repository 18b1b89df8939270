#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/adamw/adamw8bit.h"
#include "memory/exec.h"
#include "model/adapter.h"

namespace qlora {

enum class OptimizerKind : uint8_t { adamw, adamw_8bit, sgd };
// As --optim has them, in the same order.
inline constexpr std::array<std::string_view, 3> kOptimizerNames = {"adamw", "adamw_8bit", "sgd"};

// What an optimizer remembers of every parameter, as a checkpoint has it: each part in the adapter's flat
// order, in the order of safetensors files. Moments of a tensor are codes and scales where the optimizer has
// 8 bits and the tensor kMin8Bit elements or more (an A or a B is a tensor), else fp32.
enum class MomentPart : uint8_t {
  absmax1,  // fp32, one for kBlock8 codes, blocks beginning with their tensor
  absmax2,
  moment1,  // fp32, one a parameter
  moment2,
  codes1,  // uint8, one a parameter
  codes2,
};
inline constexpr size_t kMomentParts = 6;
inline constexpr std::array<MomentPart, kMomentParts> kAllMomentParts = {
    MomentPart::absmax1, MomentPart::absmax2, MomentPart::moment1,
    MomentPart::moment2, MomentPart::codes1,  MomentPart::codes2};
const char* name_of(MomentPart part);
inline DType moment_dtype(MomentPart part) { return part < MomentPart::codes1 ? DType::f32 : DType::u8; }

// The moments of an adapter: where they lie, and the pass that changes them. They lie in pages of whole
// blocks, each with its slice of every part, so that one page is all that the step of its parameters needs.
// No result hangs on the pages.
class Moments {
 public:
  // Pages of at most page_bytes, 0: one for everything. SGD has none.
  Moments(const AdapterLayout& adapter, OptimizerKind kind, size_t page_bytes = 0);

  std::vector<MomentPart> parts() const;  // those with elements
  int64_t elements(MomentPart part) const { return elements_[static_cast<size_t>(part)]; }
  size_t bytes() const { return bytes_; }
  std::string describe() const;  // "8-bit in blocks of 256, ..."

  // Takes them from the phase in force; they are all zero when its memory is.
  void allocate(Exec& e);
  void forget() { resident_.reset(); }  // the rehearsal's handle
  // One step of AdamW over all pages.
  void update(Exec& e, const AdamWHyper& hyper, std::span<float> params, std::span<const float> grads);
  // Hands out every part that there is from its first byte to its last, parts in their order.
  void save(const std::function<void(MomentPart, std::span<const std::byte>)>& write) const;
  // Has all of it filled: f(part, the first byte's place in the part, bytes).
  void load(const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill);

 private:
  using Counts = std::array<int64_t, kMomentParts>;
  struct Page {
    int64_t param = 0, count = 0;  // its parameters
    Counts first{}, elements{};    // its slice of each part
    std::array<size_t, kMomentParts> offset{};
    size_t at = 0, bytes = 0;     // in resident memory
    std::vector<MomentRun> runs;  // states and blocks count from the slices
  };
  static Counts counts_of(const MomentRun& run);
  static size_t bytes_of(const Counts& elements);
  void add(MomentRun run, size_t page_bytes);
  void place();
  static std::span<std::byte> slice(const Page& page, std::byte* data, MomentPart part);
  void step(Exec& e, const AdamWHyper& hyper, const Page& page, std::byte* data, std::span<float> params,
            std::span<const float> grads);

  OptimizerKind kind_;
  std::vector<Page> pages_;
  Counts elements_{};
  size_t bytes_ = 0;
  Buffer resident_;
};

}  // namespace qlora
