#include "tools/common/inspect.h"

#include <algorithm>
#include <filesystem>

#include "memory/error.h"
#include "tools/common/inspect_holds.h"
#include "tools/common/inspect_text.h"
#include "tools/common/main.h"
#include "tools/common/model_path.h"

namespace qlora::tools {
namespace fs = std::filesystem;
namespace {

struct Mode {
  const char* option;
  void (*run)(const Options&, const fs::path&);
};
constexpr Mode kModes[] = {{"tokenize", inspect_tokenize},
                           {"tokenize-file", inspect_tokenize_file},
                           {"detokenize", inspect_detokenize},
                           {"chat", inspect_chat},
                           {"render", inspect_render}};

// Options that say something to certain modes only; "" is the summary.
struct Needs {
  const char* option;
  std::vector<std::string> modes;
};
const std::vector<Needs>& needs() {
  static const std::vector<Needs> table = {{"tensors", {""}},
                                           {"special", {"tokenize", "tokenize-file"}},
                                           {"add-generation-prompt", {"chat"}},
                                           {"now", {"chat", "render"}},
                                           {"chat-template", {"chat", "render"}},
                                           {"row", {"render"}},
                                           {"loss-on", {"render"}},
                                           {"columns", {"", "render", "tokenize-file"}},
                                           {"dataset-format", {"", "render"}},
                                           {"sample-by", {"", "render"}}};
  return table;
}

const Mode* mode_of(const Options& options) {
  const Mode* chosen = nullptr;
  for (const Mode& mode : kModes) {
    if (!options.given(mode.option)) continue;
    if (chosen != nullptr)
      fail(Category::usage, options.origin(chosen->option), " and ", options.origin(mode.option),
           ": one at a time; leave one out");
    chosen = &mode;
  }
  const std::string name = chosen ? chosen->option : "";
  for (const auto& [option, modes] : needs())
    if (options.given(option) && std::find(modes.begin(), modes.end(), name) == modes.end())
      fail(Category::usage, options.origin(option), " says nothing here",
           modes.back().empty() ? "" : cat("; it goes with --", modes.back()));
  return chosen;
}

}  // namespace

int inspect(Options& options) {
  const Mode* mode = mode_of(options);
  const fs::path path = resolve_model(options.get<std::string>("path")).path;
  if (mode != nullptr) {
    mode->run(options, path);
    return 0;
  }
  const Json holds = holds_of(options, path, options.get<bool>("tensors"));
  if (options.get<bool>("json"))
    print_json(holds);
  else
    print_holds(holds);
  return 0;
}

}  // namespace qlora::tools
