#include <filesystem>

#include "memory/error.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"

namespace qlora {
namespace {

namespace fs = std::filesystem;

// A shard lies in the model's folder, by name and in truth: links lead out of it only as the hub cache lays
// them (snapshots/SHA/FILE -> blobs/...).
void check_shard_path(const std::string& index_path, const fs::path& folder, const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos)
    fail(Category::input, index_path, ": weight_map names the shard ", shown_text(name),
         ", which is no plain file name; correct the index");
  std::error_code error;
  const fs::path real_folder = fs::canonical(folder, error);
  const fs::path real = error ? fs::path() : fs::canonical(folder / name, error);
  if (error)
    fail(Category::input, (folder / name).string(), ": a shard that ", index_path,
         " lists is absent; fetch the missing file");
  const fs::path parent = real.parent_path();
  const bool hub_blob = real_folder.parent_path().filename() == "snapshots" &&
                        parent == real_folder.parent_path().parent_path() / "blobs";
  if (parent != real_folder && !hub_blob)
    fail(Category::input, index_path, ": the shard ", shown_text(name),
         " is a link out of the folder; put the file itself there");
}

}  // namespace

bool SafetensorsFolder::exists(const std::string& folder, const std::string& name) {
  std::error_code ignored;
  return fs::exists(folder + "/" + name + ".safetensors", ignored) ||
         fs::exists(folder + "/" + name + ".safetensors.index.json", ignored);
}

SafetensorsFolder::SafetensorsFolder(const std::string& folder, const std::string& name) {
  const std::string single = folder + "/" + name + ".safetensors";
  std::error_code ignored;
  if (!fs::exists(single, ignored) && fs::exists(single + ".index.json", ignored)) {
    open_shards(folder, single + ".index.json");
    return;
  }
  files_.push_back(std::make_unique<SafetensorsFile>(single));
  for (const TensorInfo& t : files_[0]->tensors()) tensors_.emplace(t.name, Entry{files_[0].get(), &t});
}

void SafetensorsFolder::open_shards(const std::string& folder, const std::string& index_path) {
  const Json index = read_json(index_path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object())
    fail(Category::input, index_path, ": has no weight_map; fetch it again");
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      fail(Category::input, index_path, ": weight_map of tensor ", shown_text(tensor),
           " is no file name; correct the index");
    const std::string& name = shard.get_ref<const std::string&>();
    const SafetensorsFile*& file = opened[name];
    if (file == nullptr) {
      check_shard_path(index_path, folder, name);
      files_.push_back(std::make_unique<SafetensorsFile>(folder + "/" + name));
      file = files_.back().get();
    }
    const TensorInfo* info = file->find(tensor);
    if (info == nullptr)
      fail(Category::input, index_path, ": tensor ", shown_text(tensor), " is not in its shard ", name,
           "; fetch index and shards from the same version");
    tensors_.emplace(tensor, Entry{file, info});
  }
}

const SafetensorsFolder::Entry* SafetensorsFolder::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace qlora
