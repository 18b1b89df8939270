#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

std::vector<Option> sampling_options() {
  return {
      max_new_tokens_option(),
      {.name = "temperature",
       .kind = Kind::real,
       .shown = "the model's",
       .help = "0 is greedy",
       .group = "Generation",
       .aliases = {{"temp"}},
       .min = 0},
      {.name = "top-k",
       .kind = Kind::integer,
       .shown = "the model's, else 50",
       .help = "likeliest tokens drawn from; 0 is all",
       .group = "Generation",
       .min = 0},
      {.name = "top-p",
       .kind = Kind::real,
       .shown = "the model's",
       .help = "smallest set with this probability",
       .group = "Generation",
       .min = 0,
       .max = 1,
       .above_min = true},
      {.name = "min-p",
       .kind = Kind::real,
       .shown = "the model's",
       .help = "least probability, as a share of the highest",
       .group = "Generation",
       .min = 0,
       .max = 1},
      {.name = "repetition-penalty",
       .kind = Kind::real,
       .shown = "the model's",
       .help = "above 1: tokens seen before are less likely",
       .group = "Generation",
       .aliases = {{"repeat_penalty"}},
       .min = 0,
       .above_min = true},
      {.name = "greedy",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "always the likeliest token",
       .group = "Generation",
       .aliases = {{"do_sample",
                    {{"false", ValueRule::use, "true"}, {"true", ValueRule::use, "false"}},
                    true}}},
      {.name = "stop",
       .kind = Kind::repeat,
       .shown = "none",
       .help = "text that ends the answer, not printed; may repeat",
       .group = "Generation"},
  };
}

std::vector<Option> prompt_options() {
  return {
      {.name = "prompt",
       .shown = "none",
       .value = "TEXT|-",
       .help = "what to answer, or with --raw to continue; - reads stdin",
       .group = "Prompt"},
      {.name = "system",
       .shown = "the template's",
       .value = "TEXT",
       .help = "system message",
       .group = "Prompt",
       .aliases = {{"system_prompt"}}},
      {.name = "chat",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "talk; /reset starts over, end of input leaves",
       .group = "Prompt"},
      {.name = "raw",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "the prompt as it is, without the template",
       .group = "Prompt"},
      {.name = "dataset",
       .kind = Kind::words,
       .shown = "none",
       .value = "DATA",
       .help = "a row {\"completion\"} for each row, which needs no answer of its own",
       .group = "Prompt"},
      {.name = "output",
       .shown = "stdout",
       .value = "FILE.jsonl",
       .help = "where the rows' completions go",
       .group = "Prompt"},
  };
}

Table make_generate_table() {
  Table table;
  table.program = "qlora-generate";
  table.summary = "completes a prompt, talks, or answers the rows of a data set";
  table.usage = "--model MODEL [--adapter ADAPTER] --prompt TEXT | --chat | --dataset DATA";
  table.example = "qlora-generate --model smollm2-135m --prompt \"Name three rivers.\"";
  table.options = {model_option(true)};
  for (Option& option : base_options()) table.options.push_back(std::move(option));
  table.options.push_back(compute_dtype_option());
  table.options.push_back({.name = "adapter",
                           .kind = Kind::repeat,
                           .shown = "none",
                           .value = "ADAPTER",
                           .help = "PEFT folder; may repeat to compare, `none` is the base",
                           .group = "Base",
                           .aliases = {{"peft"}, {"adapter_name_or_path"}, {"lora_model_dir"}}});
  for (Option& option : prompt_options()) table.options.push_back(std::move(option));
  for (Option& option : sampling_options()) table.options.push_back(std::move(option));
  for (Option& option : row_options())
    if (option.name == "dataset-format" || option.name == "columns" || option.name == "chat-template")
      table.options.push_back(std::move(option));
  for (Option& option : everywhere_options()) {
    if (option.name == "json")
      option.help =
          "the result on stdout as one object: {adapter, text, tokens, prompt_tokens, finish (stop|length), "
          "seconds, tokens_per_second}, {answers: [...]} of several adapters, {rows, tokens, ...} of a data "
          "set";
    table.options.push_back(std::move(option));
  }
  table.refusals = peer_refusals();
  return table;
}

}  // namespace

const Table& generate_table() {
  static const Table table = make_generate_table();
  return table;
}

}  // namespace qlora::tools
