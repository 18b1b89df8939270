#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "memory/file.h"
#include "memory/sha256.h"
#include "model/io/safetensors.h"

namespace qlora {
namespace fs = std::filesystem;
namespace {

constexpr const char* kStateFile = "trainer_state.json";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kPrefix = "checkpoint-";
constexpr size_t kResidentBytes = size_t{512} << 10;  // of a file that is read
constexpr const char* kPartial = ".partial-";

// filesystem errors as ours.
template <class F>
auto io(const std::string& what, F&& f) {
  try {
    return f();
  } catch (const fs::filesystem_error& e) {
    fail_by_system(what, e.code());
  }
}

Json optional_json(const std::optional<double>& v) { return v ? Json(*v) : Json(nullptr); }

Json files_of(const std::string& folder) {
  Json files = Json::object();
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  for (const std::string& name : names)
    files[name] = {{"bytes", fs::file_size(folder + "/" + name)},
                   {"sha256", sha256_file(folder + "/" + name)}};
  return files;
}

void write_moments(const std::string& path, Engine& engine) {
  const Moments& moments = engine.moments();
  std::vector<TensorSpec> tensors;
  for (const MomentPart part : moments.parts())
    tensors.push_back({name_of(part), moment_dtype(part), {moments.elements(part)}});
  SafetensorsWriter out(path, std::move(tensors));
  engine.save_moments([&](MomentPart part, std::span<const std::byte> bytes) {
    out.write(name_of(part), bytes.data(), bytes.size());
  });
  out.commit();
}

void read_moments(const std::string& path, Engine& engine) {
  const Moments& moments = engine.moments();
  const SafetensorsFile file(path);
  const std::vector<MomentPart> parts = moments.parts();
  for (const MomentPart part : parts) {
    const TensorInfo* t = file.find(name_of(part));
    if (t == nullptr || t->dtype != moment_dtype(part) || t->elements() != moments.elements(part))
      fail(Category::input, path, ": ", name_of(part), " is not ", name_of(moment_dtype(part)), " [",
           moments.elements(part), "]: another adapter's checkpoint");
  }
  if (file.tensors().size() != parts.size())
    fail(Category::input, path, ": ", file.tensors().size(), " tensors, not ", parts.size(),
         ": another optimizer's checkpoint");
  engine.load_moments([&](MomentPart part, size_t first, std::span<std::byte> bytes) {
    // In pieces that leave again: the arena is resident already.
    const std::byte* const from = file.data(*file.find(name_of(part))) + first;
    for (size_t at = 0; at < bytes.size(); at += kResidentBytes) {
      const size_t n = std::min(kResidentBytes, bytes.size() - at);
      std::memcpy(bytes.data() + at, from + at, n);
      file.file().forget(0, file.file().size());
    }
  });
}

// checkpoint.json of a whole checkpoint: every file there, of its size and content.
Json checked_state(const std::string& path) {
  const std::string where = path + "/" + kStateFile;
  const Json j = read_json(where);
  if (!j.is_object() || !j.contains("files") || !j["files"].is_object() || !j.contains("state"))
    fail(Category::input, where, ": not a checkpoint's state");
  for (const auto& [name, file] : j["files"].items()) {
    const std::string full = path + "/" + name;
    if (name.find('/') != std::string::npos || !file.is_object())
      fail(Category::input, where, ": not a file name: ", name);
    const size_t size = MappedFile(full).size();
    if (static_cast<int64_t>(size) != json_int(file, where, "bytes", 0, INT64_MAX))
      fail(Category::input, full, ": ", size,
           " bytes, not the size it was written with; use another checkpoint");
    if (sha256_file(full) != json_string(file, where, "sha256"))
      fail(Category::input, full, ": its content has changed since it was written; use another checkpoint");
  }
  return j;
}

std::optional<int64_t> step_of(const std::string& name) {
  const std::string prefix = kPrefix;
  int64_t step = 0;
  if (name.rfind(prefix, 0) != 0) return std::nullopt;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
  return error == std::errc() && stop == end ? std::optional(step) : std::nullopt;
}

}  // namespace

Json RunState::to_json() const {
  return {{"step", step},
          {"tokens", tokens},
          {"seconds", seconds},
          {"loss_sum", loss_sum},
          {"loss_tokens", loss_tokens},
          {"line_tokens", line_tokens},
          {"line_seconds", line_seconds},
          {"best_loss", optional_json(best_loss)},
          {"best_step", best_step},
          {"evals_without_gain", evals_without_gain},
          {"stopped_early", stopped_early},
          {"total_steps", total_steps}};
}

RunState RunState::from_json(const Json& j, const std::string& where) {
  if (!j.is_object()) fail(Category::input, where, ": state is not an object");
  const auto count = [&](const char* key) {
    const std::optional<int64_t> v = json_int(j, where, key, 0, INT64_MAX);
    if (!v) fail(Category::input, where, ": no ", key);
    return *v;
  };
  const auto real = [&](const char* key) {
    const std::optional<double> v = json_number(j, where, key);
    if (!v) fail(Category::input, where, ": no ", key);
    return *v;
  };
  RunState s;
  s.step = count("step");
  s.tokens = count("tokens");
  s.seconds = real("seconds");
  s.loss_sum = real("loss_sum");
  s.loss_tokens = count("loss_tokens");
  s.line_tokens = count("line_tokens");
  s.line_seconds = real("line_seconds");
  s.best_loss = json_number(j, where, "best_loss");
  s.best_step = count("best_step");
  s.evals_without_gain = count("evals_without_gain");
  s.total_steps = count("total_steps");
  s.stopped_early = json_bool(j, where, "stopped_early").value_or(false);
  return s;
}

void CheckpointStore::save(const RunState& state, Engine& engine) const {
  const std::string partial = folder_ + "/" + kPartial + std::to_string(state.step),
                    final = folder_ + "/" + kPrefix + std::to_string(state.step);
  io(partial, [&] {
    fs::remove_all(partial);
    fs::create_directory(partial);
  });
  write_adapter_(partial);
  write_moments(partial + "/" + kOptimizerFile, engine);
  Json identity = Json::object();
  for (const auto& [name, value] : identity_) identity[name] = value;
  const Json j = io(partial, [&] {
    return Json{{"state", state.to_json()}, {"identity", identity}, {"files", files_of(partial)}};
  });
  write_file(partial + "/" + kStateFile, j.dump(1) + "\n");
  sync_folder(partial);
  io(final, [&] {
    // The same step again (a run resumed from an older one): what it replaces is moved away first, so that
    // the final name never holds half.
    const std::string old = partial + ".old";
    if (fs::exists(final)) fs::rename(final, old);
    fs::rename(partial, final);
    fs::remove_all(old);
  });
  sync_folder(folder_);
}

std::vector<std::pair<int64_t, std::string>> CheckpointStore::list() const {
  std::vector<std::pair<int64_t, std::string>> found;
  io(folder_, [&] {
    if (!fs::exists(folder_)) return;
    for (const auto& entry : fs::directory_iterator(folder_))
      if (const std::optional<int64_t> step = step_of(entry.path().filename().string()))
        found.emplace_back(*step, entry.path().string());
  });
  std::sort(found.begin(), found.end());
  return found;
}

void CheckpointStore::prune(int64_t keep, int64_t step) const {
  const auto all = list();
  const auto current = std::count_if(all.begin(), all.end(), [&](const auto& c) { return c.first <= step; });
  io(folder_, [&] {
    for (size_t i = 0; i < all.size(); ++i) {
      const bool old = keep > 0 && static_cast<int64_t>(i) < current - keep;
      if (!old && all[i].first <= step) continue;
      // Renamed first: a crash half way through the deletion leaves no broken folder of the final name.
      const std::string doomed = folder_ + "/" + kPartial + std::to_string(all[i].first) + ".old";
      fs::remove_all(doomed);
      fs::rename(all[i].second, doomed);
      fs::remove_all(doomed);
    }
  });
}

CheckpointStore::Found CheckpointStore::open(const std::string& path) {
  if (!fs::is_directory(path))
    fail(Category::input, path, ": no such checkpoint; give a checkpoint-N folder, or last");
  return {path, RunState::from_json(checked_state(path)["state"], path + "/" + kStateFile)};
}

std::optional<CheckpointStore::Found> CheckpointStore::newest(
    const std::function<void(const std::string&)>& said) const {
  const auto all = list();
  for (size_t i = all.size(); i-- > 0;) {
    try {
      return open(all[i].second);
    } catch (const Error& e) {
      if (e.category() != Category::input) throw;
      said(cat("passing over a broken checkpoint: ", e.what()));
    }
  }
  return std::nullopt;
}

void CheckpointStore::load(
    const Found& found, int64_t total_steps,
    const std::function<void(const std::string& folder, std::span<float>)>& read_adapter,
    Engine& engine) const {
  const std::string where = found.path + "/" + kStateFile;
  const Json j = read_json(where);
  if (!j.contains("identity") || !j["identity"].is_object())
    fail(Category::input, where, ": not a checkpoint's state");
  const auto differs = [&](const std::string& name, const std::string& former, const std::string& now) {
    fail(Category::usage, found.path, ": was made with ", name, " ", former, ", this run has ", now,
         "; give the former value, or start anew with --overwrite-output-dir");
  };
  for (const auto& [name, value] : identity_) {
    const std::optional<std::string> former = json_string(j["identity"], where, name.c_str());
    if (former != value) differs(name, former.value_or("(none)"), value);
  }
  for (const auto& [name, value] : j["identity"].items())
    if (std::none_of(identity_.begin(), identity_.end(), [&](const auto& now) { return now.first == name; }))
      differs(name, value.is_string() ? value.get<std::string>() : value.dump(), "(none)");
  if (total_steps < found.state.total_steps)
    fail(Category::usage, found.path, ": was made with ", found.state.total_steps, " steps, this run has ",
         total_steps, "; a resumed run may have more steps, not fewer");
  engine.set_params([&](std::span<float> p) { read_adapter(found.path, p); });
  read_moments(found.path + "/" + kOptimizerFile, engine);
}

}  // namespace qlora
