#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

Table make_quantize_table() {
  Table table;
  table.program = "qlora-quantize";
  table.summary = "writes a bitsandbytes folder that trains here, loads in transformers and starts at once";
  table.usage = "--model MODEL --output-dir OUT";
  table.example = "qlora-quantize --model smollm2-135m --output-dir out/smollm2-nf4";
  table.options = {model_option(true)};
  for (Option& option : base_options()) {
    if (option.name == "bits") {  // what is written is always quantized
      option.fallback = "4";
      option.help = "4 (NF4, FP4) or 8 (INT8 rows)";
      option.choices = {"4", "8"};
      option.rules = {{"16", ValueRule::refuse, "is not quantized; give 4 or 8"},
                      {"keep", ValueRule::refuse, "is not quantized; give 4 or 8"}};
    }
    table.options.push_back(std::move(option));
  }
  table.options.push_back(output_dir_option());
  table.options.push_back(overwrite_option());
  for (Option& option : everywhere_options()) table.options.push_back(std::move(option));
  table.refusals = peer_refusals();
  return table;
}

}  // namespace

const Table& quantize_table() {
  static const Table table = make_quantize_table();
  return table;
}

}  // namespace qlora::tools
