#include "tools/common/session.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "memory/cuda/start.h"
#include "memory/file.h"
#include "model/io/config_checkpoint.h"
#include "model/io/gguf_tokenizer.h"
#include "model/text/chat.h"
#include "tools/common/beside.h"
#include "tools/common/option_value.h"

namespace qlora::tools {
namespace fs = std::filesystem;
namespace {

constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                                           "vocab.json", "vocab.txt"};

const char* name_of(Format f) { return f == Format::fp4 ? "fp4" : f == Format::int8 ? "int8" : "nf4"; }

// An already quantized folder is taken as it is; options that say otherwise are contradictions.
void check_agrees(const Options& options, const StoredQuantization& stored, const std::string& path) {
  const auto contradiction = [&](const char* option, const std::string& has) {
    fail(Category::usage, options.origin(option), " ", options.get<std::string>(option), ": ", path,
         " is stored as ", has, " already; leave the option out, or start from the model in 16 bits");
  };
  const std::string bits = stored.format == Format::int8 ? "8" : "4";
  const std::string asked = options.find<std::string>("bits").value_or("keep");
  if (asked != "keep" && asked != bits) contradiction("bits", bits + " bits");
  if (bits == "8") return;
  if (options.given("quant-type") && options.get<std::string>("quant-type") != name_of(stored.format))
    contradiction("quant-type", name_of(stored.format));
  if (options.given("block-size") &&
      options.get<std::string>("block-size") != std::to_string(stored.block_size))
    contradiction("block-size", cat("blocks of ", stored.block_size));
  if (options.given("double-quant") && options.get<bool>("double-quant") != stored.double_quant)
    fail(Category::usage, options.origin("double-quant"), ": ", path, " is stored ",
         stored.double_quant ? "with" : "without",
         " double quantization; leave the option out, or start from the model in 16 bits");
}

// What ends a loading that nobody waits for any more.
struct LeftAlone {};

}  // namespace

std::optional<QuantizedSpec> quantization_of(const Options& options, const std::string& bits) {
  if (bits != "4" && bits != "8") return std::nullopt;
  QuantizedSpec spec;
  if (bits == "8") {
    spec.format = Format::int8;
    return spec;
  }
  spec.format = options.get<std::string>("quant-type") == "fp4" ? Format::fp4 : Format::nf4;
  spec.block_size = std::stoi(options.get<std::string>("block-size"));
  spec.double_quant = options.get<bool>("double-quant");
  return spec;
}

Base open_base(const Options& options, bool shapes_only) {
  Base base;
  const std::string given = options.get<std::string>("model");
  base.source = resolve_model(given);
  base.name = base.source.hub_id.empty() ? given : base.source.hub_id;
  const std::string path = base.source.path.string();
  base.checkpoint = shapes_only ? open_shapes(path) : Checkpoint::open(path);
  if (base.checkpoint->quantization())
    check_agrees(options, *base.checkpoint->quantization(), base.source.path.string());
  else
    base.spec.quantize = quantization_of(options, options.find<std::string>("bits").value_or("4"));
  return base;
}

BaseLoading::BaseLoading(const Base& base, int threads, How how) {
  const bool own = threads > 1 && !how.later;
  const auto stop_if_left = [this](int, int) {
    if (left_.load()) throw LeftAlone();
  };
  const std::shared_ptr<Model> model = Model::outline(base.checkpoint, base.spec);
  outline_ = model;
  auto fill = [stop_if_left, model, threads]() -> std::shared_ptr<const Model> {
    model->fill(threads, stop_if_left);
    return model;
  };
  model_ = beside(own, std::move(fill)).share();
  if (!how.identify) return;
  auto name = [checkpoint = base.checkpoint, loaded = model_] {
    loaded.get();  // a model that cannot be loaded needs no name
    return checkpoint->fingerprint();
  };
  fingerprint_ = beside(own, std::move(name)).share();
}

TextTools open_text(const fs::path& path, const std::optional<std::string>& chat_template) {
  TextTools text;
  if (fs::is_directory(path)) {
    text.tokenizer = Tokenizer::from_folder(path.string());
    if (!chat_template) text.templates = load_chat_templates(path.string());
  } else {
    const GgufFile file(path.string());
    const GgufTokenizerData data = read_gguf_tokenizer(file);
    text.tokenizer = Tokenizer::from_gguf(data);
    if (!chat_template && !data.chat_template.empty())
      text.templates.named.emplace("default", ChatTemplate::parse(data.chat_template, path.string()));
  }
  if (chat_template) text.templates.named.emplace("default", find_chat_template(*chat_template));
  return text;
}

TextTools open_text_if_any(const fs::path& path, const std::optional<std::string>& chat_template) {
  if (fs::is_directory(path) && !chat_template &&
      std::none_of(std::begin(kTokenizerFiles), std::end(kTokenizerFiles),
                   [&](const char* name) { return fs::exists(path / name); }))
    return {};
  return open_text(path, chat_template);
}

void save_text(const TextTools& text, const std::string& folder) {
  if (!text.tokenizer) return;
  text.tokenizer->save(folder);
  if (text.templates.named.count("default") != 0)
    write_file(folder + "/chat_template.jinja", text.templates.pick(false).source());
}

Numerics numerics_of(const Options& options) {
  Numerics n;
  n.compute = options.get<std::string>("compute-dtype") == "fp32" ? DType::f32 : DType::bf16;
  n.row_tile = row_tile(device_of(options));
  return n;
}

Device device_of(const Options& options) {
  const DeviceName name = *parse_device(options.get<std::string>("device"));
  const bool card = name.which == DeviceName::Which::cuda ||
                    (name.which == DeviceName::Which::automatic && cuda::refusal(cuda::find(0), 0).empty());
  return card ? Device{DeviceKind::cuda, name.index} : Device{};
}

void require_device(const Options& options) {
  if (const Device d = device_of(options); d.kind == DeviceKind::cuda) cuda::require_device(d.index);
}

void warn_of_unused_variables(const Options& options, Screen& screen) {
  if (device_of(options).kind == DeviceKind::cuda) return;
  for (const char* name :
       {"QLORA_GEMM", "QLORA_GEMM_TABLE", "QLORA_DECODE", "QLORA_ROW_TILE", "QLORA_CUDA_BODY"})
    if (const char* const value = std::getenv(name); value != nullptr && *value != 0)
      screen.warning(cat(name, "=", value, ": has no effect on a CPU; give --device cuda, or unset it"));
}

RunDevice run_device(const Options& options, const Model& model, int threads) {
  const Device d = device_of(options);
  if (d.kind != DeviceKind::cuda) return threads;
  return RunDevice::with_copy(d.index, model, numerics_of(options).compute, threads);
}

std::string device_text(const Device& device) {
  const cuda::Found found = cuda::find(device.index);
  if (device.kind == DeviceKind::cuda && found.name.empty()) return cat("cuda:", device.index);
  if (device.kind == DeviceKind::cuda)
    return cat("cuda:", device.index, ", ", found.name, ", sm_", found.major, found.minor);
  const std::string why = cuda::refusal(found, 0);
  return why.empty() ? "cpu" : "cpu; " + why;
}

Adapter open_adapter(const std::optional<std::string>& folder, const ModelDesc& desc) {
  Adapter a;
  if (!folder || *folder == "none") return a;
  if (fs::is_regular_file(*folder))
    fail(Category::input, *folder,
         ": is a file; a PEFT adapter is a folder, and GGUF adapters are not read yet");
  a.config = read_adapter_config(*folder);
  a.layout = AdapterLayout(desc, adapter_choices(a.config, desc, *folder));
  a.params.resize(static_cast<size_t>(a.layout.size()));
  load_adapter(*folder, a.layout, a.params);
  return a;
}

std::vector<int32_t> stop_ids(const ModelDesc& desc, const TextTools& text) {
  std::vector<int32_t> ids = desc.eos;
  if (text.tokenizer)
    if (const auto eos = text.tokenizer->eos_id()) ids.push_back(*eos);
  if (!text.templates.empty())
    if (const auto end = ChatEncoder(*text.tokenizer, text.templates).end_of_turn()) ids.push_back(*end);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace qlora::tools
