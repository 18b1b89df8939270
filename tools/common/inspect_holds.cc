#include "tools/common/inspect_holds.h"

#include <algorithm>
#include <iostream>

#include "memory/file.h"
#include "model/io/gguf.h"
#include "model/io/peft.h"
#include "model/io/safetensors.h"
#include "tools/common/format.h"
#include "tools/common/session.h"
#include "train/checkpoint.h"
#include "train/data/rows.h"

namespace qlora::tools {
namespace fs = std::filesystem;
namespace {

Json tensor_list(const SafetensorsFile& file) {
  Json list = Json::array();
  for (const TensorInfo& t : file.tensors())
    list.push_back({{"name", t.name}, {"dtype", std::string(name_of(t.dtype))}, {"shape", t.shape}});
  return list;
}

Json tensor_list(const GgufFile& file) {
  Json list = Json::array();
  for (const GgufTensor& t : file.tensors())
    list.push_back({{"name", t.name}, {"dtype", t.type->name}, {"shape", t.shape}});
  return list;
}

Json model_tensors(const fs::path& path) {
  if (!fs::is_directory(path)) return tensor_list(GgufFile(path.string()));
  Json list = Json::array();
  const SafetensorsFolder folder(path.string());
  for (const auto& file : folder.files())
    for (Json& t : tensor_list(*file)) list.push_back(std::move(t));
  return list;
}

int64_t parameters_of(const ModelDesc& d) {
  int64_t n = d.vocab * d.dim * (d.tied ? 1 : 2) + d.dim;
  for (int b = 0; b < static_cast<int>(d.blocks.size()); ++b) {
    n += 2 * d.dim;  // norms
    for (int k = 0; k < kLinears; ++k) {
      const auto kind = static_cast<LinearKind>(k);
      n += d.out_features(b, kind) * (d.in_features(b, kind) + (d.has_bias(b, kind) ? 1 : 0));
    }
  }
  return n;
}

std::string stored_as(const Checkpoint& c) {
  if (const auto& q = c.quantization()) {
    if (q->format == Format::int8) return "int8 rows";
    return cat(q->format == Format::fp4 ? "fp4" : "nf4", ", blocks of ", q->block_size,
               q->double_quant ? ", double-quantized" : "");
  }
  if (!fs::is_directory(c.path()))
    for (const GgufFile file(c.path()); const GgufTensor& t : file.tensors())
      if (t.name == "blk.0.ffn_up.weight") return t.type->name;
  return std::string(name_of(c.value_dtype(linear_name(0, LinearKind::q) + ".weight")));
}

uint64_t bytes_of(const fs::path& path) {
  if (!fs::is_directory(path)) return fs::file_size(path);
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

void add_text(Json& out, const TextTools& text) {
  out["tokens"] = text.tokenizer->vocab_size();
  for (const auto& [name, token] : text.tokenizer->named_specials()) out["special_tokens"][name] = token;
  out["chat_templates"] = Json::array();
  for (const auto& [name, unused] : text.templates.named) out["chat_templates"].push_back(name);
}

bool has_tokenizer(const fs::path& path) {
  return !fs::is_directory(path) || fs::exists(path / "tokenizer.json");
}

Json model_of(const fs::path& path) {
  const auto c = Checkpoint::open(path.string());
  const ModelDesc& d = c->desc();
  const BlockDesc& b = d.blocks.at(0);
  Json out = {{"kind", fs::is_directory(path) ? "model folder" : "GGUF model"},
              {"path", path.string()},
              {"family", d.family},
              {"parameters", parameters_of(d)},
              {"stored_as", stored_as(*c)},
              {"bytes", bytes_of(path)},
              {"blocks", d.blocks.size()},
              {"dim", d.dim},
              {"ff", b.ff},
              {"heads", b.q_heads},
              {"kv_heads", b.kv_heads},
              {"head_dim", b.head_dim},
              {"vocabulary", d.vocab},
              {"context", d.max_positions},
              {"tied_head", d.tied}};
  if (has_tokenizer(path)) add_text(out, open_text(path, std::nullopt));
  return out;
}

Json adapter_of(const fs::path& path) {
  const AdapterConfig config = read_adapter_config(path.string());
  const SafetensorsFile file((path / "adapter_model.safetensors").string());
  Json out = {{"kind", "adapter"},
              {"path", path.string()},
              {"base_model", config.base_model},
              {"r", config.r},
              {"lora_alpha", config.lora_alpha},
              {"lora_dropout", config.lora_dropout},
              {"use_rslora", config.use_rslora}};
  int64_t parameters = 0;
  for (const TensorInfo& t : file.tensors()) parameters += t.elements();
  out["target_modules"] = config.targets.names;
  if (!config.targets.regex.empty()) out["target_modules"] = config.targets.regex;
  out["parameters"] = parameters;
  out["tensors_stored"] = file.tensors().size();
  out["dtype"] = file.tensors().empty() ? "" : std::string(name_of(file.tensors()[0].dtype));
  out["bytes"] = file.file().size();
  if (fs::exists(path / "trainer_state.json")) {
    out["kind"] = "checkpoint";
    const RunState state = CheckpointStore::open(path.string()).state;
    out["step"] = state.step;
    out["tokens_trained"] = state.tokens;
    out["seconds"] = state.seconds;
    if (state.best_loss) out["best_eval_loss"] = *state.best_loss;
  }
  std::vector<std::string> checkpoints;
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.is_directory() && entry.path().filename().string().rfind("checkpoint-", 0) == 0)
      checkpoints.push_back(entry.path().filename().string());
  std::sort(checkpoints.begin(), checkpoints.end());
  if (!checkpoints.empty()) out["checkpoints"] = checkpoints;
  if (fs::exists(path / "tokenizer.json")) add_text(out, open_text(path, std::nullopt));
  return out;
}

Json data_of(const Options& options, const fs::path& path) {
  const DataRows rows(path.string(), parse_sample_by(options.get<std::string>("sample-by")));
  const Columns columns(options.find<std::string>("columns").value_or(""));
  const Json first = rows.row(0);
  const DatasetFormat format = format_of(parse_dataset_format(options.get<std::string>("dataset-format")),
                                         first, columns, rows.where(0));
  for (int64_t i = 1; i < rows.size(); ++i) rows.row(i);  // a broken line is told here, not when training
  Json keys = Json::array();
  for (const auto& [key, unused] : first.items()) keys.push_back(key);
  return {{"kind", "data"},         {"path", path.string()},
          {"rows", rows.size()},    {"format", std::string(name_of(format))},
          {"keys", keys},           {"bytes", fs::file_size(path)},
          {"sha256", rows.sha256()}};
}

Json safetensors_of(const fs::path& path) {
  const SafetensorsFile file(path.string());
  int64_t elements = 0;
  for (const TensorInfo& t : file.tensors()) elements += t.elements();
  Json out = {{"kind", "safetensors file"},
              {"path", path.string()},
              {"tensors_stored", file.tensors().size()},
              {"elements", elements},
              {"bytes", file.file().size()}};
  for (const auto& [key, value] : file.metadata()) out["metadata"][key] = value;
  return out;
}

std::string value_text(const std::string& key, const Json& value) {
  if (key == "bytes") return format_bytes(value.get<uint64_t>());
  if (key == "parameters" || key == "elements") return format_count(value.get<int64_t>());
  if (key == "seconds") return format_duration(value.get<double>());
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    std::string all;
    for (const Json& v : value) all += (all.empty() ? "" : ", ") + value_text("", v);
    return all.empty() ? "none" : all;
  }
  if (value.is_object()) {
    std::string all;
    for (const auto& [k, v] : value.items()) all += (all.empty() ? "" : ", ") + k + " " + value_text("", v);
    return all;
  }
  return value.dump();
}

}  // namespace

Json holds_of(const Options& options, const fs::path& path, bool tensors) {
  const bool folder = fs::is_directory(path);
  if (folder && fs::exists(path / "adapter_config.json")) {
    Json out = adapter_of(path);
    if (tensors) out["tensors"] = tensor_list(SafetensorsFile((path / "adapter_model.safetensors").string()));
    return out;
  }
  const bool gguf = !folder && (path.extension() == ".gguf" || GgufFile::looks_like(path.string()));
  if (gguf || (folder && fs::exists(path / "config.json"))) {
    Json out = model_of(path);
    if (tensors) out["tensors"] = model_tensors(path);
    return out;
  }
  if (!folder && path.extension() == ".safetensors") {
    Json out = safetensors_of(path);
    if (tensors) out["tensors"] = tensor_list(SafetensorsFile(path.string()));
    return out;
  }
  if (tensors) fail(Category::usage, options.origin("tensors"), ": ", path.string(), " holds no tensors");
  if (!folder) return data_of(options, path);
  if (!fs::exists(path / "tokenizer.json"))
    fail(Category::input, path.string(),
         ": holds none of config.json, adapter_config.json and tokenizer.json; give a model's, an adapter's "
         "or a tokenizer's folder");
  Json out = {{"kind", "tokenizer"}, {"path", path.string()}};
  add_text(out, open_text(path, std::nullopt));
  return out;
}

void print_holds(const Json& holds) {
  size_t width = 0;
  for (const auto& [key, unused] : holds.items()) width = std::max(width, key.size());
  for (const auto& [key, value] : holds.items()) {
    if (key == "tensors") continue;
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', ' ');
    std::cout << name << std::string(width - name.size() + 2, ' ') << value_text(key, value) << "\n";
  }
  const auto tensors = holds.find("tensors");
  if (tensors == holds.end() || !tensors->is_array()) return;
  std::cout << "\n";
  for (const Json& t : *tensors)
    std::cout << t["name"].get<std::string>() << "  " << t["dtype"].get<std::string>() << "  "
              << t["shape"].dump() << "\n";
}

}  // namespace qlora::tools
