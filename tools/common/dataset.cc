#include "tools/common/dataset.h"

namespace qlora::tools {

std::string single_dataset(const Options& options, const char* option) {
  const std::vector<std::string> names = options.get<std::vector<std::string>>(option);
  if (names.size() != 1)
    fail(Category::usage, options.origin(option),
         ": lists of data sets are not built yet; join the files into one");
  return resolve_dataset(names[0]).path.string();
}

std::unique_ptr<ModelRowEncoder> row_encoder(const Options& options, const TextTools& text, int64_t vocab) {
  ChatOptions chat;
  chat.loss_on = parse_loss_on(options.get<std::string>("loss-on"));
  return std::make_unique<ModelRowEncoder>(*text.tokenizer, text.templates, chat, vocab);
}

ReadOptions read_options(const Options& options, int threads) {
  ReadOptions r;
  r.format = parse_dataset_format(options.get<std::string>("dataset-format"));
  r.columns = Columns(options.find<std::string>("columns").value_or(""));
  r.overlong = parse_overlong(options.get<std::string>("overlong"));
  r.max_seq_length = options.get<int64_t>("max-seq-length");
  r.threads = threads;
  return r;
}

DataRows open_rows(const Options& options, const std::string& dataset) {
  return {dataset, parse_sample_by(options.get<std::string>("sample-by"))};
}

}  // namespace qlora::tools
