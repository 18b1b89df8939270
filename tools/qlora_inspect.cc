// qlora-inspect: what a model, adapter, checkpoint or data file holds; tokenizes and renders.
#include <filesystem>

#include "kernels/common/isa.h"
#include "tools/common/inspect_holds.h"
#include "tools/common/inspect_text.h"
#include "tools/common/main.h"
#include "tools/common/model_path.h"
#include "tools/common/tables.h"

using namespace qlora;
using namespace qlora::tools;
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

int body(Options& options) {
  const Mode* chosen = nullptr;
  for (const Mode& mode : kModes) {
    if (!options.given(mode.option)) continue;
    if (chosen != nullptr)
      fail(Category::usage, options.origin(chosen->option), " and ", options.origin(mode.option),
           ": one at a time; leave one out");
    chosen = &mode;
  }
  const fs::path path = resolve_model(options.get<std::string>("path")).path;
  if (chosen != nullptr) {
    chosen->run(options, path);
    return 0;
  }
  const Json holds = holds_of(options, path, options.get<bool>("tensors"));
  if (options.get<bool>("json"))
    print_json(holds);
  else
    print_holds(holds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, inspect_table(), {[] { return std::string(name_of(active_isa())); }, ""}, body);
}
