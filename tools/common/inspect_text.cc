#include "tools/common/inspect_text.h"

#include <iostream>

#include "memory/file.h"
#include "model/io/gguf_tokenizer.h"
#include "model/io/json.h"
#include "model/text/chat.h"
#include "model/text/unicode.h"
#include "tools/common/main.h"
#include "tools/common/model_path.h"
#include "tools/common/option_value.h"
#include "tools/common/session.h"
#include "train/data/encode.h"
#include "train/data/rows.h"

namespace qlora::tools {
namespace fs = std::filesystem;
namespace {

constexpr const char* kLossBegin = "\u27e6";  // ⟦
constexpr const char* kLossEnd = "\u27e7";    // ⟧

// A tokenizer without its chat template, which need not be one that can be parsed.
std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& path) {
  if (fs::is_directory(path)) return Tokenizer::from_folder(path.string());
  if (path.extension() == ".json") return Tokenizer::from_json(path.string());
  return Tokenizer::from_gguf(read_gguf_tokenizer(GgufFile(path.string())));
}

TextTools open_with_template(const Options& options, const fs::path& path) {
  return open_text(path, options.find<std::string>("chat-template"));
}

ChatOptions chat_options(const Options& options) {
  ChatOptions chat;
  chat.loss_on = parse_loss_on(options.get<std::string>("loss-on"));
  if (const auto now = options.find<std::string>("now")) chat.now = parse_clock(*now, options.origin("now"));
  return chat;
}

std::string marked(const Tokenizer& tokenizer, const EncodedRow& row) {
  std::string bytes;
  bool loss = false;
  for (size_t t = 0; t < row.ids.size(); ++t) {
    if (bool(row.has_loss[t]) != loss) bytes += loss ? kLossEnd : kLossBegin;
    loss = row.has_loss[t];
    bytes += tokenizer.token_bytes(row.ids[t]);
  }
  if (loss) bytes += kLossEnd;
  return unicode::lossy(bytes);
}

}  // namespace

std::tm parse_clock(const std::string& text, const std::string& origin) {
  for (const char* format : {"%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"}) {
    std::tm t = {};
    const char* end = strptime(text.c_str(), format, &t);
    if (end == nullptr || *end != '\0') continue;
    const int day = t.tm_mday;
    timegm(&t);  // fills in the weekday and the day of the year; 30 February becomes a day of March
    if (t.tm_mday == day) return t;
  }
  fail(Category::usage, origin, " ", text, ": no time; write it as 2025-03-09 14:05:06");
}

void inspect_tokenize(const Options& options, const fs::path& path) {
  const auto tokenizer = open_tokenizer(path);
  const auto ids = tokenizer->encode(options.get<std::string>("tokenize"), options.get<bool>("special"));
  Json tokens = Json::array();
  for (const int32_t id : ids) tokens.push_back(tokenizer->id_to_token(id));
  print_json({{"ids", ids}, {"tokens", tokens}});
}

void inspect_tokenize_file(const Options& options, const fs::path& path) {
  const auto tokenizer = open_tokenizer(path);
  const DataRows rows(options.get<std::string>("tokenize-file"));
  const Columns columns(options.find<std::string>("columns").value_or(""));
  columns.check_for(DatasetFormat::text);
  const bool special = options.get<bool>("special");
  std::string out;
  for (int64_t i = 0; i < rows.size(); ++i) {
    const Json row = rows.row(i);
    const Json* text = columns.find(row, "text");
    if (text == nullptr || !text->is_string())
      fail(Category::input, rows.where(i), ": has no string '", columns.of("text"),
           "'; add it, or name the key with --columns text=KEY");
    out += Json{{"ids", tokenizer->encode(text->get_ref<const std::string&>(), special)}}.dump() + "\n";
    if (out.size() > (size_t{1} << 20)) {
      std::cout << out;
      out.clear();
    }
  }
  std::cout << out;
}

void inspect_detokenize(const Options& options, const fs::path& path) {
  const auto tokenizer = open_tokenizer(path);
  std::vector<int32_t> ids;
  for (const std::string& word : options.get<std::vector<std::string>>("detokenize")) {
    const auto id = parse_integer(word);
    if (!id || *id < 0 || *id >= tokenizer->vocab_size())
      fail(Category::usage, options.origin("detokenize"), " ", word,
           ": no token id; the vocabulary has 0 to ", tokenizer->vocab_size() - 1);
    ids.push_back(static_cast<int32_t>(*id));
  }
  print_json({{"text", tokenizer->decode(ids)}});
}

void inspect_chat(const Options& options, const fs::path& path) {
  const TextTools text = open_with_template(options, path);
  const std::string file = options.get<std::string>("chat");
  const Conversation chat = Conversation::from_json(read_json(file), file);
  if (text.templates.empty())
    fail(Category::input, path.string(), ": has no chat template; give --chat-template FILE or NAME");
  const ChatEncoder encoder(*text.tokenizer, text.templates, chat_options(options));
  print_json({{"text", encoder.render(chat, options.get<bool>("add-generation-prompt")).text}});
}

void inspect_render(const Options& options, const fs::path& path) {
  const TextTools text = open_with_template(options, path);
  const DataRows rows(resolve_dataset(options.get<std::string>("render")).path.string(),
                      parse_sample_by(options.get<std::string>("sample-by")));
  const int64_t index = options.get<int64_t>("row");
  if (index >= rows.size())
    fail(Category::usage, options.origin("row"), " ", index, ": ", rows.path(), " has rows 0 to ",
         rows.size() - 1);
  const Columns columns(options.find<std::string>("columns").value_or(""));
  const Json row = rows.row(index);
  const DatasetFormat format = format_of(parse_dataset_format(options.get<std::string>("dataset-format")),
                                         row, columns, rows.where(index));
  const ModelRowEncoder encoder(*text.tokenizer, text.templates, chat_options(options),
                                text.tokenizer->vocab_size());
  const EncodedRow encoded = encode_row(row, format, columns, encoder, rows.where(index));

  const std::string plain = text.tokenizer->decode(encoded.ids), with_mask = marked(*text.tokenizer, encoded);
  int64_t learned = 0;
  for (const uint8_t loss : encoded.has_loss) learned += loss;
  if (options.get<bool>("json"))
    return print_json({{"format", std::string(name_of(format))},
                       {"text", plain},
                       {"masked", with_mask},
                       {"tokens", encoded.ids.size()},
                       {"tokens_with_loss", learned},
                       {"ids", encoded.ids},
                       {"loss", encoded.has_loss}});
  std::cout << plain << "\n\n--- the same; loss on what stands in " << kLossBegin << kLossEnd << ", "
            << learned << " of " << encoded.ids.size() << " tokens ---\n"
            << with_mask << std::endl;
}

}  // namespace qlora::tools
