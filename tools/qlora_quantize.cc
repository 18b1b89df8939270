// qlora-quantize: a model folder or GGUF as a bitsandbytes folder.
#include <filesystem>

#include "model/io/folder_writer.h"
#include "tools/common/format.h"
#include "tools/common/main.h"
#include "tools/common/session.h"
#include "tools/common/tables.h"
#include "tools/common/threads.h"

using namespace qlora;
using namespace qlora::tools;
namespace fs = std::filesystem;

namespace {

uint64_t folder_bytes(const fs::path& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

int body(Options& options) {
  Screen screen(options);
  const ResolvedPath source = resolve_model(options.get<std::string>("model"));
  const std::string out = options.get<std::string>("output-dir");
  if (fs::exists(fs::path(out) / "config.json") && !options.get<bool>("overwrite-output-dir"))
    fail(Category::usage, out,
         ": holds a model already; replace it with --overwrite-output-dir, or give another --output-dir");
  refuse_as_output(source.path, out);
  const bool made = !fs::exists(out);
  const std::unique_ptr<Checkpoint> base = Checkpoint::open(source.path.string());
  const TextTools text = open_text_if_any(source.path, std::nullopt);

  FolderSpec spec;
  spec.quantize = quantization_of(options, options.get<std::string>("bits"));
  spec.threads = thread_count(options);
  int64_t shown = 0;
  spec.progress = [&](double share) {
    const int64_t percent = static_cast<int64_t>(share * 100);
    if (!screen.terminal() && percent < shown + 10) return;  // a pipe gets a line for each call
    shown = percent;
    screen.progress({.what = "quantizing", .done = percent, .total = 100});
  };
  try {
    write_model_folder(*base, out, spec);
    save_text(text, out);
  } catch (const Error&) {
    std::error_code ignored;
    if (made) fs::remove(out, ignored);  // only when nothing was written there
    throw;
  }
  screen.finish();

  const uint64_t bytes = folder_bytes(out);
  screen.line(
      cat(out, ": ", format_bytes(bytes), "; try it: qlora-generate --model ", out, " --prompt \"Hello\""));
  if (options.get<bool>("json")) print_json({{"output_dir", out}, {"bytes", bytes}});
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_tool(argc, argv, quantize_table, this_build(), body); }
