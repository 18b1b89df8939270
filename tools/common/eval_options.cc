#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

Table make_eval_table() {
  Table table;
  table.program = "qlora-eval";
  table.summary = "measures loss, perplexity and accuracy of a model, with or without an adapter";
  table.usage = "--model MODEL [--adapter ADAPTER] --dataset DATA";
  table.example = "qlora-eval --model smollm2-135m --dataset examples/address_eval.jsonl";
  table.options = {model_option(true)};
  for (Option& option : base_options()) table.options.push_back(std::move(option));
  table.options.push_back(compute_dtype_option());
  table.options.push_back({.name = "adapter",
                           .shown = "none",
                           .value = "ADAPTER",
                           .help = "PEFT folder",
                           .group = "Base",
                           .aliases = {{"peft"}, {"adapter_name_or_path"}, {"lora_model_dir"}}});
  table.options.push_back({.name = "dataset",
                           .kind = Kind::words,
                           .value = "DATA",
                           .help = "a .jsonl, .json or .txt file",
                           .group = "Data",
                           .aliases = {{"datasets"}, {"dataset_path"}, {"eval_dataset"}, {"data_path"}},
                           .required = true});
  for (Option& option : row_options()) table.options.push_back(std::move(option));
  table.options.push_back({.name = "per-device-eval-batch-size",
                           .kind = Kind::integer,
                           .fallback = "8",
                           .help = "rows in a pass; they never see each other",
                           .group = "Data",
                           .aliases = {{"eval_batch_size"}, {"batch_size"}},
                           .min = 1,
                           .max = 1 << 20});
  table.options.push_back({.name = "generate",
                           .kind = Kind::toggle,
                           .fallback = "false",
                           .help = "also answer each row greedily: exact_match, fields_right, valid_json",
                           .group = "Generation"});
  table.options.push_back(max_new_tokens_option());
  table.options.push_back(
      {.name = "logits",
       .shown = "none",
       .value = "FILE",
       .help = "safetensors file that gets logits.N fp32 [tokens, vocabulary] and input_ids.N a row",
       .group = "Output"});
  for (Option& option : everywhere_options()) table.options.push_back(std::move(option));
  table.refusals = peer_refusals();
  return table;
}

}  // namespace

const Table& eval_table() {
  static const Table table = make_eval_table();
  return table;
}

}  // namespace qlora::tools
