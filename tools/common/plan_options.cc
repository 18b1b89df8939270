#include <algorithm>

#include "tools/common/tables.h"

namespace qlora::tools {
namespace {

Table make_plan_table() {
  Table table = train_table();
  table.program = "qlora-plan";
  table.summary = "the memory that a training run takes, region by region, without running it";
  table.usage = "--model MODEL [qlora-train's options]";
  table.example = "qlora-plan --model smollm2-135m --max-seq-length 2048 --memory 680MiB";
  table.other_devices = true;
  for (Option& o : table.options) {
    if (o.name == "model") o.help += "; a config.json alone will do";
    if (o.name == "device") o.help = "what the run is planned for; a CUDA card need not be here";
    if (o.name == "dataset") {
      o.help += "; without: rows of max-seq-length tokens, all with loss";
      o.shown = "none";
      o.required = false;
    }
    if (o.name == "output-dir") {
      o.help = "taken as qlora-train's options are; nothing is written there";
      o.shown = "none";
      o.required = false;
    }
  }
  table.options.push_back({.name = "picture",
                           .shown = "none",
                           .value = "FILE.svg",
                           .help = "memory over one step, region by region, as a picture",
                           .group = "Output",
                           .transient = true});
  return table;
}

}  // namespace

const Table& plan_table() {
  static const Table table = make_plan_table();
  return table;
}

}  // namespace qlora::tools
