#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

Table make_inspect_table() {
  Table table;
  table.program = "qlora-inspect";
  table.summary = "says what a model, adapter, checkpoint or data file holds; tokenizes and renders";
  table.usage = "PATH";
  table.example = "qlora-inspect smollm2-135m --tokenize \"Hello, world\"";
  table.operand = "path";
  table.options = {
      {.name = "path",
       .value = "PATH",
       .help = "model, adapter, checkpoint, data file, or a folder with a tokenizer alone",
       .group = "What",
       .aliases = {{"model"}},
       .required = true,
       .transient = true},
      {.name = "tensors",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "names, shapes and types",
       .group = "What"},
      {.name = "tokenize",
       .shown = "none",
       .value = "TEXT",
       .help = "{\"ids\", \"tokens\"} of a text",
       .group = "Text"},
      {.name = "tokenize-file",
       .shown = "none",
       .value = "FILE.jsonl",
       .help = "rows {\"text\"} to rows {\"ids\"}",
       .group = "Text"},
      {.name = "special",
       .kind = Kind::toggle,
       .fallback = "true",
       .help = "with the tokens that the tokenizer puts around a text (BOS, EOS)",
       .group = "Text",
       .aliases = {{"add_special_tokens"}}},
      {.name = "detokenize",
       .kind = Kind::words,
       .shown = "none",
       .value = "ID,ID,...",
       .help = "{\"text\"} of token ids, special tokens kept",
       .group = "Text"},
      {.name = "chat",
       .shown = "none",
       .value = "FILE.json",
       .help = "{\"text\"} of a conversation through the template",
       .group = "Template"},
      {.name = "add-generation-prompt",
       .kind = Kind::toggle,
       .fallback = "false",
       .help = "end with the head of an answer",
       .group = "Template"},
      {.name = "now",
       .shown = "the clock",
       .value = "TIME",
       .help = "the template's clock, as 2025-03-09 14:05:06",
       .group = "Template"},
      {.name = "render",
       .shown = "none",
       .value = "DATA",
       .help = "a row of data as the model sees it, and its loss mask",
       .group = "Template"},
      {.name = "row",
       .kind = Kind::integer,
       .fallback = "0",
       .help = "which row, from 0",
       .group = "Template",
       .min = 0},
  };
  for (Option& option : row_options())
    if (option.name != "max-seq-length" && option.name != "overlong")  // a row is shown whole
      table.options.push_back(std::move(option));
  for (Option& option : everywhere_options()) table.options.push_back(std::move(option));
  table.refusals = peer_refusals();
  return table;
}

}  // namespace

const Table& inspect_table() {
  static const Table table = make_inspect_table();
  return table;
}

}  // namespace qlora::tools
