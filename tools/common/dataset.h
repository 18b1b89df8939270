#pragma once
// --dataset and what belongs to it, read.
#include <memory>
#include <string>
#include <vector>

#include "tools/common/session.h"
#include "train/data/reader.h"

namespace qlora::tools {

// The one file that an option names. Category::usage for lists and weights, which are not built.
std::string single_dataset(const Options& options, const char* option);

// How rows are encoded, masked and cut, as the options say. `text` and the model's vocabulary must outlive
// it. Without a tokenizer only rows of token ids are read; others are Category::input.
std::unique_ptr<RowEncoder> row_encoder(const Options& options, const TextTools& text, int64_t vocab);
ReadOptions read_options(const Options& options, int threads);
DataRows open_rows(const Options& options, const std::string& dataset);

}  // namespace qlora::tools
