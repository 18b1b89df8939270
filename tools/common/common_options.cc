#include "tools/common/tables.h"

namespace qlora::tools {

Option model_option(bool required) {
  return {.name = "model",
          .value = "MODEL",
          .help =
              "Hugging Face folder, bitsandbytes folder, .gguf file, hub id org/name[@revision] found in the "
              "hub's "
              "cache, or smollm2-135m (kept by tools/quickstart)",
          .group = "Base",
          .aliases = {{"model_name_or_path"},
                      {"base_model"},
                      {"model_name"},
                      {"pretrained_model_name_or_path"},
                      {"base_model_name_or_path"}},
          .required = required};
}

std::vector<Option> base_options() {
  const std::string says_not = "says what the base is not; add bits: 16, 8 or keep";
  const auto flag = [&](const char* name, const char* bits) {
    return Alias{
        name, {{"true", ValueRule::use, bits}, {"false", ValueRule::needs, says_not, {"bits"}}}, true};
  };
  return {
      {.name = "bits",
       .kind = Kind::choice,
       .shown = "keep for a quantized folder, else 4",
       .help = "how the frozen base is held: 4 (NF4, FP4), 8 (INT8 rows), 16 (bf16), or as the files have it",
       .group = "Base",
       .choices = {"4", "8", "16", "keep"},
       .aliases = {flag("load_in_4bit", "4"), flag("load_in_8bit", "8"), {"quantization_bit"}}},
      {.name = "quant-type",
       .kind = Kind::choice,
       .fallback = "nf4",
       .help = "4-bit code book",
       .group = "Base",
       .choices = {"nf4", "fp4"},
       .aliases = {{"bnb_4bit_quant_type"}}},
      {.name = "double-quant",
       .kind = Kind::toggle,
       .fallback = "true",
       .help = "quantize the 4-bit blocks' constants too",
       .group = "Base",
       .aliases = {{"bnb_4bit_use_double_quant"}, {"use_nested_quant"}, {"use_double_quant"}}},
      {.name = "block-size",
       .kind = Kind::choice,
       .fallback = "64",
       .help = "weights that share a constant",
       .group = "Base",
       .choices = {"32", "64", "128", "256", "512", "1024", "2048", "4096"}},
  };
}

Option compute_dtype_option() {
  const std::string half = "is not built; give bf16";
  return {.name = "compute-dtype",
          .kind = Kind::choice,
          .fallback = "bf16",
          .help = "type of activations and decoded weights; sums are fp32 in both",
          .group = "Base",
          .choices = {"bf16", "fp32"},
          .aliases = {{"bnb_4bit_compute_dtype"},
                      {"bf16",
                       {{"true", ValueRule::use, "bf16"},
                        {"auto", ValueRule::use, "bf16"},
                        {"full", ValueRule::use, "bf16"},
                        {"false", ValueRule::use, "fp32"}},
                       true},
                      {"fp16", {{"true", ValueRule::refuse, half}, {"false", ValueRule::ignore, ""}}, true}},
          .rules = {{"bfloat16", ValueRule::use, "bf16"},
                    {"torch.bfloat16", ValueRule::use, "bf16"},
                    {"float32", ValueRule::use, "fp32"},
                    {"torch.float32", ValueRule::use, "fp32"},
                    {"fp16", ValueRule::refuse, half},
                    {"float16", ValueRule::refuse, half},
                    {"torch.float16", ValueRule::refuse, half}}};
}

std::vector<Option> row_options() {
  return {
      {.name = "dataset-format",
       .kind = Kind::choice,
       .fallback = "auto",
       .help = "what a row is; auto looks at the columns",
       .group = "Data",
       .choices = {"auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "tokens"},
       .rules = {{"chat_template", ValueRule::use, "messages"},
                 {"chatml", ValueRule::use, "messages"},
                 {"conversations", ValueRule::use, "sharegpt"},
                 {"completion", ValueRule::use, "text"},
                 {"prompt_completion", ValueRule::use, "prompt-completion"},
                 {"tokenized", ValueRule::use, "tokens"},
                 {"pretokenized", ValueRule::use, "tokens"}}},
      {.name = "columns",
       .kind = Kind::pairs,
       .shown = "the format's own names",
       .value = "role=name,...",
       .help = "columns of the data by the role they play (prompt=question,completion=answer)",
       .group = "Data"},
      {.name = "sample-by",
       .kind = Kind::choice,
       .fallback = "document",
       .help = "what a row of a .txt file is",
       .group = "Data",
       .choices = {"document", "paragraph", "line"}},
      {.name = "loss-on",
       .kind = Kind::choice,
       .fallback = "assistant",
       .help = "tokens with loss: each answer and its end of turn, the last answer's alone, or all "
               "(--train-on-inputs)",
       .group = "Data",
       .choices = {"assistant", "last", "all"},
       .aliases = {{"train_on_inputs",
                    {{"true", ValueRule::use, "all"}, {"false", ValueRule::use, "assistant"}},
                    true},
                   {"assistant_only_loss",
                    {{"true", ValueRule::use, "assistant"}, {"false", ValueRule::use, "all"}},
                    true},
                   {"completion_only_loss",
                    {{"true", ValueRule::use, "assistant"}, {"false", ValueRule::use, "all"}},
                    true}}},
      {.name = "chat-template",
       .shown = "the model's own",
       .value = "FILE|NAME",
       .help = "Jinja file, or a template by name (alpaca)",
       .group = "Data",
       .aliases = {{"chat_template_jinja"}, {"chat_template_path"}}},
      {.name = "max-seq-length",
       .kind = Kind::integer,
       .fallback = "2048",
       .help = "tokens in a row; a longer `text` goes on in the next one",
       .group = "Data",
       .aliases = {{"sequence_len"},
                   {"cutoff_len"},
                   {"max_length"},
                   {"max_seq_len"},
                   {"model_max_length"},
                   {"seq_length"}},
       .min = 2,
       .max = 1 << 24},
      {.name = "overlong",
       .kind = Kind::choice,
       .fallback = "truncate",
       .help = "what becomes of a longer row of another format",
       .group = "Data",
       .choices = {"truncate", "drop", "error"}},
  };
}

Option output_dir_option() {
  return {.name = "output-dir",
          .value = "OUT",
          .help = "folder that is written",
          .group = "Output",
          .aliases = {{"output"}},
          .required = true};
}

Option overwrite_option() {
  return {.name = "overwrite-output-dir",
          .kind = Kind::toggle,
          .fallback = "false",
          .help = "write over what an earlier run left there",
          .group = "Output",
          .transient = true};
}

Option max_new_tokens_option() {
  return {.name = "max-new-tokens",
          .kind = Kind::integer,
          .fallback = "256",
          .help = "tokens an answer may have",
          .group = "Generation",
          .aliases = {{"max_tokens"}, {"n_predict"}},
          .min = 1,
          .max = 1 << 24};
}

std::vector<Option> everywhere_options() {
  return {
      {.name = "device",
       .kind = Kind::device,
       .fallback = "auto",
       .help = "where the work is done; auto takes a CUDA card where there is one",
       .group = "Everywhere"},
      {.name = "threads",
       .kind = Kind::integer,
       .shown = "OMP_NUM_THREADS, else affinity and cgroup quota",
       .help = "CPU threads; results do not depend on it",
       .group = "Everywhere",
       .aliases = {{"num_threads"}, {"n_threads"}},
       .min = 1,
       .max = 4096},
      {.name = "seed",
       .kind = Kind::integer,
       .fallback = "42",
       .help = "drives everything that is drawn",
       .group = "Everywhere",
       .aliases = {{"data_seed"}, {"random_state"}},
       .min = 0},
      {.name = "verbose",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "say more",
       .group = "Everywhere",
       .transient = true},
      {.name = "quiet",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "say only warnings, errors and the result",
       .group = "Everywhere",
       .transient = true},
      {.name = "json",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "the result on stdout as one JSON object, all else on stderr",
       .group = "Everywhere",
       .transient = true},
      {.name = "config",
       .shown = "none",
       .value = "FILE",
       .help = "YAML or JSON with these names; the command line wins",
       .group = "Everywhere",
       .transient = true},
  };
}

}  // namespace qlora::tools
