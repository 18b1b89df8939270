#include "tools/common/model_path.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "memory/error.h"
#include "memory/file.h"

namespace qlora::tools {
namespace {

namespace fs = std::filesystem;

struct ShortName {
  const char* name;
  const char* file;  // in the cache folder of this project
  const char* hub_id;
};
constexpr ShortName kShortNames[] = {
    {"smollm2-135m", "smollm2-135m-instruct-q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"}};

struct HubName {
  std::string id, revision;
};

fs::path variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? fs::path(value) : fs::path();
}

const ShortName* short_name(const std::string& name) {
  for (const ShortName& known : kShortNames)
    if (name == known.name) return &known;
  return nullptr;
}

bool is_hex40(const std::string& text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

bool plain(const std::string& text, const char* others) {
  return !text.empty() && text.find("..") == text.npos &&
         std::all_of(text.begin(), text.end(), [&](unsigned char c) {
           return std::isalnum(c) ||
                  std::string_view(others).find(static_cast<char>(c)) != std::string_view::npos;
         });
}

// What looks like model.gguf, unlike Llama-3.1-8B or name-v1.0: letters and digits that begin with a letter.
bool has_extension(const std::string& name) {
  const std::string extension = fs::path(name).extension().string();
  return extension.size() >= 2 && extension.size() <= 13 &&
         std::isalpha(static_cast<unsigned char>(extension[1])) &&
         std::all_of(extension.begin() + 1, extension.end(), [](unsigned char c) { return std::isalnum(c); });
}

bool is_path_only(const std::string& name) {
  return name.front() == '.' || name.front() == '/' || name.front() == '~' || has_extension(name);
}

// org/name[@revision], else an empty id.
HubName hub_name(const std::string& text) {
  const size_t at = text.find('@'), slash = text.find('/');
  const std::string id = text.substr(0, at);
  const std::string revision = at == text.npos ? "main" : text.substr(at + 1);
  if (slash == text.npos || slash >= id.size()) return {};
  const bool good = plain(id.substr(0, slash), "._-") && plain(id.substr(slash + 1), "._-") &&
                    plain(revision, "._-/") && revision.front() != '/' && revision.back() != '/';
  return good ? HubName{id, revision} : HubName{};
}

// .../models--org--name/snapshots/COMMIT[/file] says what was loaded.
void name_snapshot(ResolvedPath& resolved) {
  std::error_code error;
  std::vector<std::string> parts;
  for (const fs::path& part : fs::absolute(resolved.path, error).lexically_normal())
    parts.push_back(part.string());
  for (size_t i = 0; i + 2 < parts.size(); ++i) {
    const size_t middle = parts[i].find("--", 8);
    if (parts[i].rfind("models--", 0) != 0 || middle == std::string::npos || parts[i + 1] != "snapshots")
      continue;
    resolved.hub_id = parts[i].substr(8, middle - 8) + "/" + parts[i].substr(middle + 2);
    resolved.revision = parts[i + 2];
  }
}

// A snapshot's links lead to the repository's own blobs; any other link would hand a stranger's file to the
// reader.
void check_links(const fs::path& snapshot, const fs::path& blobs) {
  std::error_code error;
  const fs::path home = fs::weakly_canonical(blobs, error);
  size_t entries = 0;
  for (fs::recursive_directory_iterator at(snapshot, error), end; !error && at != end; at.increment(error)) {
    if (++entries > 100000)
      fail(Category::input, snapshot.string(), ": more than 100,000 files; this is no model");
    if (!at->is_symlink()) continue;
    const fs::path target = fs::weakly_canonical(at->path(), error);
    if (target.parent_path() != home)
      fail(Category::input, at->path().string(), ": links out of the hub's cache; download the model again");
  }
  if (error) fail_by_system(snapshot.string(), error);
}

ResolvedPath from_hub(const HubName& name, const char* kind) {
  std::string folder = std::string(kind) + "s--" + name.id;
  folder.replace(folder.find('/'), 1, "--");
  const fs::path repository = hub_cache() / folder;
  std::string commit = name.revision;
  std::error_code error;
  if (const fs::path ref = repository / "refs" / name.revision; fs::is_regular_file(ref, error)) {
    commit = read_file(ref.string(), 256);
    while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back()))) commit.pop_back();
    if (!is_hex40(commit))
      fail(Category::input, ref.string(), ": holds no commit; download the ", kind, " again");
  }
  const fs::path snapshot = repository / "snapshots" / commit;
  if (!is_hex40(commit) || !fs::is_directory(snapshot, error)) {
    const bool data = kind == std::string("dataset"), main = name.revision == "main";
    fail(Category::input, name.id, main ? "" : "@" + name.revision,
         ": no such path, and not in the hub's cache ", hub_cache().string(),
         "; downloading is not built into this program, run: hf download ", name.id,
         data ? " --repo-type dataset" : "", main ? "" : " --revision " + name.revision);
  }
  check_links(snapshot, repository / "blobs");
  return {snapshot, name.id, commit};
}

ResolvedPath resolve(const std::string& name, const char* kind) {
  if (name.empty()) fail(Category::usage, "the ", kind, "'s name is empty; give a path or a hub id org/name");
  std::error_code error;
  if (fs::exists(name, error)) {
    ResolvedPath resolved{name, "", ""};
    name_snapshot(resolved);
    return resolved;
  }
  if (error == std::errc::permission_denied)
    fail(Category::input, name, ": cannot be reached: ", error.message(),
         "; check the path and its permissions");
  if (is_path_only(name)) fail(Category::input, name, ": no such file or folder; check the path");
  const HubName hub = hub_name(name);
  if (!hub.id.empty()) return from_hub(hub, kind);
  fail(Category::input, name, ": no such file or folder, and no hub id org/name[@revision]; ",
       kind == std::string("model") ? "short names: " + short_model_names().front() : "check the path");
}

}  // namespace

fs::path user_cache() {
  const fs::path xdg = variable("XDG_CACHE_HOME");
  if (xdg.is_absolute()) return xdg;  // the XDG specification has relative ones ignored
  return variable("HOME") / ".cache";
}

std::vector<std::string> short_model_names() {
  std::vector<std::string> names;
  for (const ShortName& known : kShortNames) names.emplace_back(known.name);
  return names;
}

fs::path short_model_file(const std::string& name) {
  const ShortName* known = short_name(name);
  check(known, name, " is no short name");
  return user_cache() / "qlora" / known->file;
}

fs::path hub_cache() {
  if (const fs::path cache = variable("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const fs::path home = variable("HF_HOME"); !home.empty()) return home / "hub";
  return user_cache() / "huggingface" / "hub";
}

ResolvedPath resolve_model(const std::string& name) {
  std::error_code error;
  const ShortName* known = short_name(name);
  if (!known || fs::exists(name, error)) return resolve(name, "model");
  const fs::path file = short_model_file(name);
  if (!fs::is_regular_file(file, error))
    fail(Category::input, name, ": ", file.string(), " is absent; run: tools/quickstart");
  return {file, known->hub_id, ""};
}

void refuse_as_output(const fs::path& model, const std::string& out) {
  std::error_code absent;
  if (fs::equivalent(model, out, absent))
    fail(Category::usage, out, ": is the model itself, whose files would be lost; give another --output-dir");
}

ResolvedPath resolve_dataset(const std::string& name) {
  std::error_code error;
  const size_t colon = name.rfind(':');
  const bool weighted = colon != std::string::npos && fs::exists(name.substr(0, colon), error);
  if (weighted && !fs::exists(name, error)) return {name, "", ""};  // DataRows says what it does not read
  return resolve(name, "dataset");
}

}  // namespace qlora::tools
