#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/adamw/adamw8bit.h"
#include "memory/cuda/host.h"
#include "memory/pager.h"
#include "model/adapter.h"

namespace qlora {

// A paged form keeps its moments in pages elsewhere when memory has no room for them.
enum class OptimizerKind : uint8_t { adamw, adamw_8bit, paged_adamw_32bit, paged_adamw_8bit, sgd };
// As --optim has them, in the same order.
inline constexpr std::array<std::string_view, 5> kOptimizerNames = {
    "adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd"};
inline bool has_8bit(OptimizerKind k) {
  return k == OptimizerKind::adamw_8bit || k == OptimizerKind::paged_adamw_8bit;
}
inline bool is_paged(OptimizerKind k) {
  return k == OptimizerKind::paged_adamw_32bit || k == OptimizerKind::paged_adamw_8bit;
}

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

// The moments of an adapter: where they lie, and the passes that change them. They lie in pages of whole
// blocks, each with its slice of every part, so that one page is all that the step of its parameters needs. A
// paged optimizer's are either all in memory, or elsewhere and pass through slots; the others' are one page
// in memory. SGD has none. No result hangs on any of that.
class Moments {
 public:
  struct Paging {
    size_t page_bytes = size_t{2} << 20;  // at most; slots of so many pass through the arena
    int slots = 4;
    bool always = false;  // even where memory has room
    std::string folder;   // where the pages' file goes, which has no name
    // Another place than that file, its pages zero at first.
    std::function<std::unique_ptr<PageBackend>(uint32_t pages, size_t page_bytes, int slots)> open;
    // Beside a CUDA device: every optimizer's moments may leave it, to pinned memory.
    bool pinned = false;
  };
  Moments(const AdapterLayout& adapter, OptimizerKind kind, const Paging& paging);

  std::vector<MomentPart> parts() const;  // those with elements
  int64_t elements(MomentPart part) const { return elements_[static_cast<size_t>(part)]; }
  size_t bytes() const { return bytes_; }
  bool may_leave() const { return kind_ != OptimizerKind::sgd && (is_paged(kind_) || paging_.pinned); }
  std::string describe() const;  // "two, 8 bits in blocks of 256; ..."

  // Before a rehearsal: whether they are in memory (at first, and always unless they may leave).
  void keep_in_memory(bool in_memory);
  bool in_memory() const { return pager_ == nullptr; }
  // From the phase in force: the moments, if they are in memory, and what a CUDA device reads of the pages.
  void allocate(Exec& e);
  void forget() { resident_.reset(), runs_.reset(); }  // the rehearsal's handles
  // After the rehearsals of the passes in `traces`: makes the pages, if the moments are not in memory.
  // Category::io when their disk has no room, Category::memory when no pinned memory is granted. `compute`:
  // the stream of the passes on a CUDA device, whose pages are pinned memory.
  void connect(std::initializer_list<const Trace*> traces, cuda::Stream* compute = nullptr);
  const Pager* pager() const { return pager_.get(); }  // null: they are in memory

  // The passes; at most one of each in a trace. Nothing is called in rehearsal.
  // One step of AdamW.
  void update(Exec& e, const AdamWHyper& hyper, std::span<float> params, std::span<const float> grads);
  // Hands out every part that there is from its first byte to its last, parts in their order. On a CUDA
  // device bytes pass through pinned memory, in pieces, and so they do in load().
  void save(Exec& e, const std::function<void(MomentPart, std::span<const std::byte>)>& write);
  // Has all of it filled: f(part, the first byte's place in the part, bytes). What a run begins with, too.
  void load(Exec& e, const std::function<void(MomentPart, size_t, std::span<std::byte>)>& fill);

 private:
  using Counts = std::array<int64_t, kMomentParts>;
  struct Page {
    int64_t param = 0, count = 0;  // its parameters
    Counts first{}, elements{};    // its slice of each part
    std::array<size_t, kMomentParts> offset{};
    size_t at = 0, bytes = 0;           // in resident memory
    std::vector<MomentRun> runs;        // states and blocks count from the slices
    std::span<const MomentRun> shared;  // the same where a CUDA device reaches them; set by allocate()
    std::span<const MomentRun> reached() const { return shared.empty() ? runs : shared; }
  };
  static Counts counts_of(const MomentRun& run);
  static size_t bytes_of(const Counts& elements);
  class Walk;
  size_t largest_page() const;
  size_t run_count() const;
  void add(MomentRun run, size_t page_bytes);
  void place();
  static std::span<std::byte> slice(const Page& page, std::byte* data, MomentPart part);
  void step(Exec& e, const AdamWHyper& hyper, const Page& page, std::byte* data, std::span<float> params,
            std::span<const float> grads);

  OptimizerKind kind_;
  Paging paging_;
  std::vector<Page> pages_;
  Counts elements_{};
  size_t bytes_ = 0;
  Buffer resident_, runs_;
  std::unique_ptr<Pager> pager_;
};

}  // namespace qlora
