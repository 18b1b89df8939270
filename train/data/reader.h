#pragma once
#include <string>

#include "train/data/dataset.h"
#include "train/data/encode.h"
#include "train/data/rows.h"

namespace qlora {

// What to do with rows longer than max_seq_length (but `text`, which goes on in the next sample).
enum class Overlong : uint8_t { truncate, drop, error };
Overlong parse_overlong(std::string_view name);

struct ReadOptions {
  DatasetFormat format = DatasetFormat::automatic;
  Columns columns;
  Overlong overlong = Overlong::truncate;
  int64_t max_seq_length = 2048;  // at least 2
  int threads = 1;
};

// The format in force: options.format, or what the first row's keys say.
DatasetFormat format_of(const DataRows& rows, const ReadOptions& options);

// Tokenizes every row, in parallel; the result does not depend on the threads. A text longer than
// max_seq_length becomes consecutive samples that together hold every token of it (a last sample of a single
// token, which could carry no label, takes one token of the sample before it). Samples without a label are
// dropped and counted. Category::input: the first broken row in the data's order, with file and line; a data
// set of which nothing is left.
Dataset read_dataset(const DataRows& rows, const RowEncoder& encoder, const ReadOptions& options);

}  // namespace qlora
