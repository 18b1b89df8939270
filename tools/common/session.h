#pragma once
// What every tool opens: a base, its tokenizer and chat template, an adapter.
#include <atomic>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/decoder.h"
#include "model/io/peft.h"
#include "model/run_device.h"
#include "model/text/chat_template.h"
#include "model/text/tokenizer.h"
#include "model/weights.h"
#include "tools/common/model_path.h"
#include "tools/common/options.h"
#include "tools/common/screen.h"

namespace qlora::tools {

struct Base {
  ResolvedPath source;
  std::shared_ptr<const Checkpoint> checkpoint;
  BaseSpec spec;
  // What the model card and config call it: the hub id where known, else the path as given.
  std::string name;
};
// --model with --bits, --quant-type, --double-quant and --block-size. Category::usage when they contradict a
// folder that is quantized.
// `shapes_only`: a config.json without weights will do.
Base open_base(const Options& options, bool shapes_only = false);
// The model of a base: outlined at once, and read on a thread of its own while the caller reads other things.
// Leaving without model() gives it up after the block in hand.
class BaseLoading {
 public:
  struct How {
    bool identify = false;  // fingerprint() will be asked for
    bool later = false;     // nothing is read before model() is called
  };
  BaseLoading(const Base& base, int threads, How how);
  ~BaseLoading() { left_.store(true); }
  BaseLoading(const BaseLoading&) = delete;
  BaseLoading& operator=(const BaseLoading&) = delete;
  // Shapes and sizes, nothing read yet.
  const std::shared_ptr<const Model>& outline() const { return outline_; }
  // That model, read. Both wait, and throw what reading threw.
  std::shared_ptr<const Model> model() { return model_.get(); }
  const std::string& fingerprint() { return fingerprint_.get(); }

 private:
  std::atomic<bool> left_{false};
  std::shared_ptr<const Model> outline_;
  std::shared_future<std::shared_ptr<const Model>> model_;
  std::shared_future<std::string> fingerprint_;
};
// The quantization that the options ask for, where they ask for one ("4", "8"; nullopt for 16).
std::optional<QuantizedSpec> quantization_of(const Options& options, const std::string& bits);

struct TextTools {
  std::unique_ptr<Tokenizer> tokenizer;  // null only from open_text_if_any
  ChatTemplates templates;               // --chat-template's where given; may be empty
};
// The tokenizer of a model folder, a folder with a tokenizer alone, or a GGUF.
TextTools open_text(const std::filesystem::path& path, const std::optional<std::string>& chat_template);

// The same, and nothing for a model folder without any tokenizer file: rows of token ids need none.
TextTools open_text_if_any(const std::filesystem::path& path,
                           const std::optional<std::string>& chat_template);

// The tokenizer's files and, where there is a template, chat_template.jinja; nothing without a tokenizer.
void save_text(const TextTools& text, const std::string& folder);

Numerics numerics_of(const Options& options);

// The device that --device names; auto takes the first CUDA card where it can run this program, else the CPU.
Device device_of(const Options& options);
// Before anything is opened: Category::usage when nothing can run on the card that --device names.
void require_device(const Options& options);
// A warning for each variable of the environment that the CPU, where it does the work, has no use for.
void warn_of_unused_variables(const Options& options, Screen& screen);
// That device for passes that train nothing; a card gets a copy of the weights.
RunDevice run_device(const Options& options, const Model& model, int threads);
// The device as a run shows it: a card's name and architecture; of the CPU, why no card is taken.
std::string device_text(const Device& device);

// A PEFT folder's branches on a model.
struct Adapter {
  AdapterConfig config;
  AdapterLayout layout;
  std::vector<float> params;
  AdapterView view() const { return {&layout, params.data(), nullptr}; }
};
// "none" and nullopt: no branches.
Adapter open_adapter(const std::optional<std::string>& folder, const ModelDesc& desc);

// What ends an answer: generation_config's, the tokenizer's and the template's end-of-turn ids.
std::vector<int32_t> stop_ids(const ModelDesc& desc, const TextTools& text);

}  // namespace qlora::tools
