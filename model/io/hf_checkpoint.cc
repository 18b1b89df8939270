#include <algorithm>
#include <cstring>
#include <filesystem>

#include "memory/error.h"
#include "memory/sha256.h"
#include "model/families/families.h"
#include "model/io/bnb_reader.h"
#include "model/io/config.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "model/io/stored_checkpoint.h"

namespace qlora {
namespace {

namespace fs = std::filesystem;

SafetensorsFolder open_tensors(const std::string& folder) {
  if (SafetensorsFolder::exists(folder)) return SafetensorsFolder(folder);
  std::error_code ignored;
  if (fs::exists(folder + "/pytorch_model.bin", ignored) ||
      fs::exists(folder + "/pytorch_model.bin.index.json", ignored))
    fail(Category::input, folder,
         ": holds pytorch_model.bin only, which is not read; save it as safetensors");
  fail(Category::input, folder, ": holds no model.safetensors; name a complete model folder or a .gguf file");
}

Json open_config(const std::string& folder) {
  std::error_code refused;  // why, reading says
  if (!fs::exists(folder + "/config.json", refused) && !refused)
    fail(Category::input, folder, ": holds no config.json; name a complete model folder or a .gguf file");
  return read_json(folder + "/config.json");
}

std::optional<Format> plain_format(DType t) {
  if (t == DType::f32) return Format::f32;
  if (t == DType::f16) return Format::f16;
  if (t == DType::bf16) return Format::bf16;
  return std::nullopt;
}

class HfCheckpoint : public StoredCheckpoint {
 public:
  explicit HfCheckpoint(const std::string& folder)
      : config_(open_config(folder)), folder_(open_tensors(folder)), bnb_(folder_) {
    path_ = folder;
    const std::string where = folder + "/config.json";
    desc_ = family_of_config(config_, where).describe(config_, where);
    add_generation_ids(folder + "/generation_config.json", desc_);
    const std::optional<StoredQuantization> claimed = read_quantization_config(config_, where);
    for (const ExpectedTensor& e : expected_tensors(desc_)) tensors_.emplace(e.name(), bind(e));
    check_quantization(claimed, where);
    check_leftovers();
  }

  std::string config_json() const override {
    Json out = config_;
    out.erase("quantization_config");
    return out.dump(2) + "\n";
  }

  std::vector<const MappedFile*> files() const override {
    std::vector<const MappedFile*> out;
    for (const auto& f : folder_.files()) out.push_back(&f->file());
    return out;
  }

  std::string fingerprint() const override {
    Sha256 hash;
    hash.update(config_json());
    for (const auto& [name, entry] : folder_.tensors()) {
      const TensorInfo& t = *entry.info;
      // Not through a stream: one that finds no memory goes on without the rest.
      hash.update(name + '\n');
      hash.update(safetensors_name(t.dtype));
      hash.update(t.shape_text() + '\n');
      const uint64_t digest = fast_digest(entry.data(), t.bytes);
      hash.update(&digest, sizeof(digest));
    }
    return hash.hex();
  }

 private:
  StoredTensor bind(const ExpectedTensor& e) {
    StoredTensor out;
    out.vector = e.vector;
    if (e.linear) {
      if (const auto quantized = bnb_.read(e.module, e.rows, e.cols)) {
        out.view = *quantized;
        out.file = folder_.find(e.name())->file->path();
        return out;
      }
    }
    const SafetensorsFolder::Entry* entry = folder_.find(e.name());
    if (entry == nullptr)
      fail(Category::input, path_, ": tensor ", e.name(),
           " is absent; fetch the missing shard or use another model");
    const TensorInfo& t = *entry->info;
    const std::vector<int64_t> shape =
        e.vector ? std::vector<int64_t>{e.cols} : std::vector<int64_t>{e.rows, e.cols};
    const std::optional<Format> format = plain_format(t.dtype);
    if (!format)
      fail(Category::input, entry->file->path(), ": tensor ", e.name(), ": weights of type ",
           safetensors_name(t.dtype), " are not supported; save the model as BF16, F16 or F32");
    if (t.shape != shape)
      fail(Category::input, entry->file->path(), ": tensor ", e.name(), " is ", t.shape_text(),
           " where config.json asks for ",
           e.vector ? cat("[", e.cols, "]") : cat("[", e.rows, ", ", e.cols, "]"),
           "; config and weights are of different models");
    out.view.format = *format;
    out.view.rows = e.rows;
    out.view.cols = e.cols;
    out.view.data = entry->data();
    out.file = entry->file->path();
    out.in_place = reinterpret_cast<uintptr_t>(entry->data()) % size_of(t.dtype) == 0;
    return out;
  }

  void check_quantization(const std::optional<StoredQuantization>& claimed, const std::string& where) {
    const std::optional<StoredQuantization>& seen = bnb_.seen();
    if (claimed.has_value() != seen.has_value())
      fail(Category::input, where, ": quantization_config ",
           claimed ? "is there but no tensor is quantized" : "is absent but tensors are quantized",
           "; correct the file or fetch the model again");
    if (!seen) return;
    if (claimed->format != seen->format || claimed->double_quant != seen->double_quant)
      fail(Category::input, where, ": quantization_config says other types than the tensors have",
           "; correct the file or fetch the model again");
    quantization_ = seen;
  }

  // A tensor that the description has no place for (a bias, a norm) would change what the model computes.
  void check_leftovers() const {
    for (const auto& [name, entry] : folder_.tensors()) {
      if (tensors_.count(name) != 0 || name.find("rotary_emb.inv_freq") != std::string::npos) continue;
      if (is_quantization_part(name)) continue;
      if (name == std::string(kHeadName) + ".weight" && desc_.tied) {
        check_tied_head(entry);
        continue;
      }
      fail(Category::input, entry.file->path(), ": tensor ", name,
           " has no place in the model that config.json describes; config and weights are of different "
           "models");
    }
  }

  bool is_quantization_part(const std::string& name) const {
    if (!bnb_.seen()) return false;
    const size_t weight = name.find(".weight");
    const size_t end = weight != std::string::npos ? weight : name.rfind('.');
    if (end == std::string::npos) return false;
    const std::string module = name.substr(0, end);
    const auto it = tensors_.find(module + ".weight");
    return it != tensors_.end() && plain_view(it->second.view) == false && BnbReader::belongs(module, name);
  }
  static bool plain_view(const WeightView& w) {
    return w.format != Format::nf4 && w.format != Format::fp4 && w.format != Format::int8;
  }

  void check_tied_head(const SafetensorsFolder::Entry& head) const {
    const SafetensorsFolder::Entry& embed = *folder_.find(std::string(kEmbedName) + ".weight");
    if (head.info->bytes != embed.info->bytes || head.info->dtype != embed.info->dtype ||
        std::memcmp(head.data(), embed.data(), embed.info->bytes) != 0)
      fail(Category::input, path_,
           ": tensor lm_head.weight differs from the embedding that config.json ties it to; set "
           "tie_word_embeddings to false");
  }

  Json config_;
  SafetensorsFolder folder_;
  BnbReader bnb_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_hf_checkpoint(const std::string& folder) {
  return std::make_unique<HfCheckpoint>(folder);
}

}  // namespace qlora
