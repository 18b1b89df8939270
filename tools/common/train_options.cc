#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

using Then = ValueRule::Then;

Option dataset_option() {
  return {
      .name = "dataset",
      .kind = Kind::words,
      .value = "DATA",
      .help = "a .jsonl, .json or .txt file",
      .group = "Data",
      .aliases =
          {{"datasets"}, {"dataset_path"}, {"dataset_name"}, {"data_path"}, {"train_file"}, {"data_files"}},
      .required = true};
}

std::vector<Option> batch_options() {
  return {
      {.name = "shuffle",
       .kind = Kind::toggle,
       .fallback = "true",
       .help = "draw the rows' order each epoch; off: file order",
       .group = "Data",
       .aliases = {{"shuffle_dataset"}}},
      {.name = "packing",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "whole documents placed best-fit into rows of max-seq-length; nothing leaks between them",
       .group = "Data",
       .aliases = {{"sample_packing"}}},
      {.name = "per-device-train-batch-size",
       .kind = Kind::integer,
       .fallback = "2",
       .help = "rows in a pass",
       .group = "Data",
       .aliases = {{"micro_batch_size"}, {"train_batch_size"}},
       .min = 1,
       .max = 1 << 20},
      {.name = "gradient-accumulation-steps",
       .kind = Kind::integer,
       .fallback = "4",
       .help = "passes in a step",
       .group = "Data",
       .aliases = {{"grad_accum_steps"}},
       .min = 1,
       .max = 1 << 20},
      {.name = "num-train-epochs",
       .kind = Kind::real,
       .fallback = "1",
       .help = "times through the data",
       .group = "Data",
       .aliases = {{"num_epochs"}, {"epochs"}},
       .min = 0,
       .above_min = true},
      {.name = "max-steps",
       .kind = Kind::integer,
       .shown = "from the epochs",
       .help = "steps to train; wins over the epochs",
       .group = "Data",
       .rules = {{"-1", Then::ignore, ""}},
       .min = 1,
       .max = INT32_MAX},
  };
}

std::vector<Option> evaluation_options() {
  const std::vector<ValueRule> strategy = {
      {"epoch",
       Then::unset,
       "wants rows to evaluate on; add eval_dataset or eval_fraction",
       {"eval-dataset", "eval-fraction"}},
      {"steps", Then::needs, "wants their number; add eval_steps", {"eval-steps"}},
      {"*", Then::refuse,
       "is not needed: nothing is evaluated without eval_dataset or eval_fraction; drop it"}};
  return {
      {.name = "eval-dataset",
       .kind = Kind::words,
       .shown = "none",
       .value = "DATA",
       .help = "rows that are measured and never trained on",
       .group = "Evaluation",
       .aliases = {{"validation_file"}, {"test_datasets"}}},
      {.name = "eval-fraction",
       .kind = Kind::real,
       .fallback = "0",
       .help = "share of the data held out, drawn by the seed",
       .group = "Evaluation",
       .aliases = {{"val_set_size"},
                   {"val_size"},
                   {"validation_split_percentage",
                    {{"*", Then::refuse, "is a percentage; give eval_fraction from 0 to 1"}}}},
       .min = 0,
       .max = 1,
       .below_max = true},
      {.name = "eval-steps",
       .kind = Kind::integer,
       .shown = "each epoch",
       .help = "steps between evaluations",
       .group = "Evaluation",
       .aliases = {{"eval_strategy", strategy}, {"evaluation_strategy", strategy}},
       .min = 1},
      {.name = "early-stopping-patience",
       .kind = Kind::integer,
       .shown = "off",
       .help = "evaluations without a lower loss before the run ends",
       .group = "Evaluation",
       .min = 1},
      {.name = "load-best-model-at-end",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "OUT gets the adapter with the lowest evaluation loss",
       .group = "Evaluation"},
  };
}

std::vector<Option> memory_options() {
  return {
      {.name = "gradient-checkpointing",
       .kind = Kind::choice,
       .fallback = "auto",
       .help = "what is computed again in backward: what the budget asks for, all, or nothing",
       .group = "Memory",
       .choices = {"auto", "all", "none"},
       .aliases = {{"use_gradient_checkpointing"}},
       .rules = {{"true", Then::use, "all"}, {"false", Then::use, "none"}, {"unsloth", Then::use, "all"}},
       .bare = "all"},
      {.name = "memory",
       .kind = Kind::bytes,
       .fallback = "auto",
       .help = "cap on the training device: peak resident set on a CPU, all that is held on a card; auto is "
               "what is free",
       .group = "Memory"},
      {.name = "host-memory",
       .kind = Kind::bytes,
       .shown = "auto",
       .help = "cap on the host's side of a CUDA run",
       .group = "Memory",
       .cuda_only = true},
  };
}

std::vector<Option> output_options() {
  return {
      output_dir_option(),
      {.name = "logging-steps",
       .kind = Kind::integer,
       .fallback = "1",
       .help = "steps a line of metrics.jsonl covers",
       .group = "Output",
       .min = 1},
      {.name = "save-steps",
       .kind = Kind::integer,
       .fallback = "500",
       .help = "steps between checkpoints; one more at each epoch's end",
       .group = "Output",
       .aliases = {{"save_strategy",
                    {{"steps", Then::ignore, ""},
                     {"epoch", Then::use, "1000000000"},
                     {"*", Then::refuse,
                      "is not built; give save_steps, each epoch's end is always saved"}}}},
       .min = 1},
      {.name = "save-total-limit",
       .kind = Kind::integer,
       .fallback = "2",
       .help = "checkpoints kept",
       .group = "Output",
       .min = 1},
      {.name = "report-to",
       .kind = Kind::words,
       .fallback = "tensorboard,html",
       .value = "tensorboard,html|none",
       .help = "what is written beside metrics.jsonl: TensorBoard events in runs/, report.html",
       .group = "Output",
       .choices = {"tensorboard", "html", "none"},
       .rules = {{"wandb", Then::refuse, "is not built; give tensorboard,html"},
                 {"mlflow", Then::refuse, "is not built; give tensorboard,html"},
                 {"comet_ml", Then::refuse, "is not built; give tensorboard,html"},
                 {"trackio", Then::refuse, "is not built; give tensorboard,html"},
                 {"swanlab", Then::refuse, "is not built; give tensorboard,html"},
                 {"all", Then::refuse, "depends on what is installed; give tensorboard,html"}}},
      {.name = "dry-run",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "print the plan and stop",
       .group = "Output",
       .transient = true},
      {.name = "resume-from-checkpoint",
       .shown = "none",
       .value = "last|PATH",
       .help = "go on from OUT's newest complete checkpoint, or from this one",
       .group = "Output",
       .aliases = {{"auto_resume_from_checkpoints",
                    {{"true", Then::use, "last"}, {"false", Then::ignore, ""}},
                    true}},
       .rules = {{"true", Then::use, "last"}, {"false", Then::ignore, ""}},
       .transient = true},
      overwrite_option(),
  };
}

void append(std::vector<Option>& to, std::vector<Option> from) {
  for (Option& option : from) to.push_back(std::move(option));
}

Table make_train_table() {
  Table table;
  table.program = "qlora-train";
  table.summary = "trains LoRA adapters over a frozen base that is held in 4, 8 or 16 bits";
  table.usage = "--model MODEL --dataset DATA --output-dir OUT";
  table.example =
      "qlora-train --model smollm2-135m --dataset examples/address_train.jsonl --output-dir out/address "
      "--max-steps 50";
  table.options = {model_option(true)};
  append(table.options, base_options());
  table.options.push_back(compute_dtype_option());
  append(table.options, adapter_options());
  append(table.options, optimizer_options());
  table.options.push_back(dataset_option());
  append(table.options, row_options());
  append(table.options, batch_options());
  append(table.options, evaluation_options());
  append(table.options, memory_options());
  append(table.options, output_options());
  append(table.options, everywhere_options());
  table.refusals = peer_refusals();
  return table;
}

}  // namespace

const Table& train_table() {
  static const Table table = make_train_table();
  return table;
}

}  // namespace qlora::tools
