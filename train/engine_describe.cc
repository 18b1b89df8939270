// Each byte of a plan with its name, its place and its reason.
#include <algorithm>

#include "train/engine.h"

namespace qlora {
namespace {

std::string layer_text(int block) { return cat("/layer ", block); }

bool stored(const SavePolicy& policy, const std::string& field) {
  bool out = false;
  BlockSaved().for_each_field(policy, [&](const char* name, const Matrix&, Keep k) {
    if (field == name) out = k == Keep::store;
  });
  return out;
}

}  // namespace

std::string EnginePlan::choices() const {
  // In how many layers a choice comes to `k`: "qkv in 3, mlp in 32".
  int in_all = 0;
  const auto counted = [&](Keep k) {
    std::array<int, kChoices> layers{};
    std::array<const char*, kChoices> names{};
    in_all = 0;
    for (const SavePolicy& p : policy) {
      size_t c = 0;
      SavePolicy::for_each_choice(p, [&](const char* name, Keep is) {
        names[c] = name;
        layers[c++] += is == k;
        in_all += is == k;
      });
    }
    std::string text;
    for (size_t c = 0; c < kChoices; ++c)
      if (layers[c] > 0) text += cat(text.empty() ? "" : ", ", names[c], " in ", layers[c]);
    return text;
  };
  const std::string again = counted(Keep::recompute);
  std::string text = "stored";
  if (in_all == kChoices * static_cast<int>(policy.size()))
    text = "recomputed";
  else if (in_all > 0)
    text = cat("recomputed: ", again, " of ", policy.size(), " layers");
  std::string paged = counted(Keep::page);
  if (inputs_paged > 0) paged = cat("inputs in ", inputs_paged, paged.empty() ? "" : ", ") + paged;
  return paged.empty() ? text : cat(text, "; paged: ", paged, " of ", policy.size(), " layers");
}

void Engine::describe_base() {
  for (const bool constants : {false, true})
    for (int b = -1; b < model_->block_count(); ++b)
      for (const Place place : {Place::device, Place::host, Place::file}) {
        size_t bytes = 0;
        bool looked_up = false;
        for (const Model::Part& p : model_->parts())
          if (p.block == b && place_of(p) == place && !(pages_ && place == Place::file)) {
            bytes += constants ? p.constants : p.codes;
            looked_up |= p.looked_up;
          }
        if (bytes == 0) continue;
        plan_.regions.push_back({cat(constants ? "constants" : "base", b < 0 ? "/embeddings" : layer_text(b)),
                                 place, bytes,
                                 on_cuda() && looked_up ? "the host looks rows up"
                                 : constants            ? "scales, norms, biases"
                                 : b < 0                ? "as stored"
                                                        : model_->storage()});
      }
}

void Engine::describe_arena() {
  const auto add = [&](std::string name, size_t bytes, std::string why, Place where = Place::device) {
    plan_.regions.push_back({std::move(name), where, bytes, std::move(why)});
  };
  for (const Span& s : state_.spans)
    if (s.where == Place::host)
      add(cat("pinned/", s.name), s.bytes,
          s.region == Region::adapter ? "on its way from and to files" : "read by the device where it lies",
          Place::host);
    else
      add(name_of(s.region), s.bytes, s.region == Region::moments ? moments_.describe() : "fp32");
  if (!moments_.in_memory()) add(name_of(Region::moments), 0, moments_.describe());
  const Trace* largest = &train_;
  for (const Trace* t : {&eval_, &norm_, &update_, &save_, &load_})
    if (t->bytes > largest->bytes) largest = t;
  size_t live = state_.bytes;
  for (const LiveBytes& l : live_at_peak(*largest)) {
    const bool named = std::string(name_of(l.region)) != l.name;
    const bool saved = l.region == Region::activations && l.block >= 0;
    add(cat(name_of(l.region), named ? cat("/", l.name) : "", saved ? layer_text(l.block) : ""), l.bytes,
        saved && stored(plan_.policy[static_cast<size_t>(l.block)], l.name)
            ? "stored from the forward to the backward pass"
            : cat("at the peak of ", largest->name));
    live += l.bytes;
  }
  add("gaps", plan_.arena_bytes - live, "between spans that share the arena");
  if (plan_.host_arena_bytes > state_.host_bytes)
    add("pinned/workspace", plan_.host_arena_bytes - state_.host_bytes,
        "rows and moments on their way to and from the device", Place::host);
}

// Pages of a CUDA device; on a CPU they are in files.
void Engine::describe_pages() {
  if (pages_) plan_.microbatch_pages += pages_->planned(train_);
  for (const auto& p : saved_pages_)
    if (p) plan_.microbatch_pages += p->planned(train_);
  if (!moments_.in_memory()) plan_.update_pages = moments_.pager()->planned(update_);
  if (!on_cuda()) return;
  const auto add = [&](const Pager& p, const char* what) {
    plan_.regions.push_back({"pinned/" + p.name(), Place::host, p.home_bytes(),
                             cat(what, ", ", p.slots(), " slots on the device")});
  };
  if (!moments_.in_memory()) add(*moments_.pager(), "moments between the steps");
  for (const auto& p : saved_pages_)
    if (p) add(*p, "fields of blocks between the passes");
}

void Engine::describe() {
  const auto add = [&](std::string name, Place where, size_t bytes, std::string why) {
    if (bytes > 0) plan_.regions.push_back({std::move(name), where, bytes, std::move(why)});
  };
  const Place resident = on_cuda() ? Place::device : Place::host;
  add("process", Place::host, plan_.process_bytes, "program, libraries, tokenizer, data");
  if (on_cuda())
    add("process", Place::device, options_.context_bytes,
        options_.context_bytes == kCudaContextBytes ? "context and modules: a constant, not measured"
                                                    : "context and modules, as measured");
  describe_base();
  add("base/around", Place::file, pages_ ? 0 : mapped_around_, "what the system maps of the files beside it");
  describe_arena();
  describe_pages();
  add("rope tables", resident, table_bytes(), "fp32, for the longest document");
  if (on_cuda()) {
    add("base/padding", Place::device, DeviceWeights::padding(*model_),
        "to 16 bytes between arrays; maps of double quantization");
    add("base/host copy", Place::host, host_copy_bytes(), "of what was quantized or converted here");
    add("rope tables", Place::host, table_bytes(), "as they are made");
    add("staging/weights", Place::host, DeviceWeights::staging_bytes(), "on their way to the device");
  }
  add("staging", Place::host, staging_bytes(), "the batches of a step");
  size_t sum = 0;
  for (const PlanRegion& r : plan_.regions) sum += r.bytes;
  check(sum <= plan_.total_bytes, "a plan of ", plan_.total_bytes, " bytes lists ", sum);
  // What reading and tokenizing took at its peak and gave back, where that is above the run's own.
  add("loading", Place::host, plan_.total_bytes - sum, "taken before the first step, and given back");
}

}  // namespace qlora
