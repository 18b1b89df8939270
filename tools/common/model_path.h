#pragma once
// MODEL and DATA as a user names them, resolved to a path. Nothing is downloaded by this program.
#include <filesystem>
#include <string>
#include <vector>

namespace qlora::tools {

struct ResolvedPath {
  std::filesystem::path path;  // exists
  std::string hub_id;          // org/name where known (also for a path inside the hub's cache), else empty
  std::string revision;        // the commit of the snapshot, else empty
};

// In this order: an existing path; a short name (smollm2-135m); a hub id org/name[@revision] whose snapshot
// is in the hub's cache. A name with an extension (.gguf) or a leading '.', '/' or '~' is a path and nothing
// else. Errors: input, with the command that gets what is absent.
ResolvedPath resolve_model(const std::string& name);

// The same for a folder of data on the hub; no short names.
ResolvedPath resolve_dataset(const std::string& name);

// Category::usage where the folder to write is the model's own.
void refuse_as_output(const std::filesystem::path& model, const std::string& out);

// Short names of models, and the file that tools/quickstart keeps for one.
std::vector<std::string> short_model_names();
std::filesystem::path short_model_file(const std::string& name);

// $XDG_CACHE_HOME, else ~/.cache.
std::filesystem::path user_cache();
// $HF_HUB_CACHE, else $HF_HOME/hub, else $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
std::filesystem::path hub_cache();

}  // namespace qlora::tools
