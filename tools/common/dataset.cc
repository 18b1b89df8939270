#include "tools/common/dataset.h"

namespace qlora::tools {
namespace {

// A model without a tokenizer: its rows must be token ids already.
class TokenIdEncoder : public RowEncoder {
 public:
  TokenIdEncoder(LossOn loss_on, int64_t vocab) : loss_on_(loss_on), vocab_(vocab) {}
  std::vector<TokenSpan> encode(std::string_view) const override { refuse(); }
  EncodedChat encode_chat(const Conversation&) const override { refuse(); }
  std::vector<int32_t> encode_question(const Conversation&) const override { refuse(); }
  LossOn loss_on() const override { return loss_on_; }
  std::optional<int32_t> eos() const override { return std::nullopt; }
  int64_t vocab() const override { return vocab_; }

 private:
  [[noreturn]] static void refuse() {
    fail(Category::input,
         "the model folder has no tokenizer for rows of text; put its tokenizer.json there, or give rows of "
         "input_ids");
  }
  LossOn loss_on_;
  int64_t vocab_;
};

}  // namespace

std::string single_dataset(const Options& options, const char* option) {
  const std::vector<std::string> names = options.get<std::vector<std::string>>(option);
  if (names.size() != 1)
    fail(Category::usage, options.origin(option),
         ": lists of data sets are not built yet; join the files into one");
  return resolve_dataset(names[0]).path.string();
}

std::unique_ptr<RowEncoder> row_encoder(const Options& options, const TextTools& text, int64_t vocab) {
  ChatOptions chat;
  chat.loss_on = parse_loss_on(options.get<std::string>("loss-on"));
  if (!text.tokenizer) return std::make_unique<TokenIdEncoder>(chat.loss_on, vocab);
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
