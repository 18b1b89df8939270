#pragma once
// One table a program; names and defaults follow what fine-tuners already type (the QLoRA script, PEFT, TRL,
// Axolotl).
#include <vector>

#include "tools/common/options.h"

namespace qlora::tools {

const Table& train_table();
const Table& quantize_table();
const Table& eval_table();
const Table& generate_table();
const Table& inspect_table();
const Table& plan_table();  // train's, with what a plan can do without

// qlora-train's, by group.
std::vector<Option> adapter_options();
std::vector<Option> optimizer_options();

// Groups that several tables share.
Option model_option(bool required);
std::vector<Option> base_options();  // bits, quant-type, double-quant, block-size
Option compute_dtype_option();
std::vector<Option> row_options();  // how rows of a data set are read, masked and cut
Option output_dir_option();
Option overwrite_option();
Option max_new_tokens_option();
std::vector<Option> everywhere_options();  // device, threads, seed, verbose, quiet, json, config
std::vector<Refusal> peer_refusals();      // what peers have and these programs do not, whichever program

}  // namespace qlora::tools
