#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "memory/file.h"
#include "model/io/json.h"

namespace qlora {

// What a row of data means. `automatic` looks at the keys of the first row.
enum class DatasetFormat : uint8_t {
  automatic,  // messages, sharegpt, prompt-completion, alpaca, tokens, text: the first whose keys are there
  messages,   // {"messages": [{"role", "content"}, ...], "tools"?, "documents"?, "chat_template_kwargs"?}
  sharegpt,   // {"conversations": [{"from": human|gpt|system|tool, "value"}, ...]}
  alpaca,     // {"instruction", "output", "input"?, "system"?}
  prompt_completion,  // {"prompt", "completion"}: two strings or two lists of messages
  text,               // {"text"}
  tokens,             // {"input_ids": [...], "labels"?: [...]}, -100 = no loss
};
// "auto", "messages", ... as --dataset-format has them. Category::usage.
DatasetFormat parse_dataset_format(std::string_view name);
std::string_view name_of(DatasetFormat format);

// How a .txt file becomes rows: whole, split at blank lines, or line by line.
enum class SampleBy : uint8_t { document, paragraph, line };
SampleBy parse_sample_by(std::string_view name);

// --columns: where a row keeps what a format calls `role`.
class Columns {
 public:
  Columns() = default;
  // "role=name,role=name"; Category::usage for a role that no format has.
  explicit Columns(std::string_view text);
  std::string of(const std::string& role) const {
    const auto it = names_.find(role);
    return it == names_.end() ? role : it->second;
  }
  bool name(std::string_view role) const { return names_.find(role) != names_.end(); }
  // Category::usage when a role is named that rows of this format do not have.
  void check_for(DatasetFormat format) const;
  // The row's value for a role; null when the key is absent or its value is null.
  const Json* find(const Json& row, const std::string& role) const;
  const std::map<std::string, std::string, std::less<>>& names() const { return names_; }

 private:
  std::map<std::string, std::string, std::less<>> names_;
};

// The rows of a data file: JSON lines (.jsonl, .ndjson, or a .json or nameless file that begins with '{'), a
// JSON array (.json), or plain text (.txt). Only '\n' ends a line; blank lines are no rows; a UTF-8 mark at
// the beginning is skipped. Lines stay in the mapped file and are parsed when asked for, so rows() may be
// called from many threads.
class DataRows {
 public:
  // Category::input, naming the file (and line), when it is absent, empty, not UTF-8, or of a kind that is
  // not read (csv, parquet, compressed, folders, weighted lists, hub ids).
  DataRows(const std::string& path, SampleBy sample_by = SampleBy::document);

  const std::string& path() const { return path_; }
  const std::string& sha256() const { return sha256_; }  // of the file's bytes
  int64_t size() const;
  // Row i as an object. Category::input, naming file and line, for a line that is no JSON object.
  Json row(int64_t i) const;
  // "rows.jsonl: line 3", for errors about row i.
  std::string where(int64_t i) const;

 private:
  void split_lines(std::string_view text);
  void split_paragraphs(std::string_view text);
  void check_utf8(std::string_view text) const;

  enum class Kind : uint8_t { json_lines, json_array, text };
  struct Line {
    std::string_view text;
    uint64_t number;  // from 1
  };
  std::string path_, sha256_;
  MappedFile file_;
  Kind kind_ = Kind::json_lines;
  std::vector<Line> lines_;
  Json array_;
};

// `asked`, or for `automatic` the format that the row's keys stand for (Category::input, naming `where` and
// the keys, when they stand for none). Columns name roles of that format alone, else Category::usage.
DatasetFormat format_of(DatasetFormat asked, const Json& row, const Columns& columns,
                        const std::string& where);

// Category::input when a role is named whose key not one row has: its name is wrong.
void check_keys(const DataRows& rows, const Columns& columns);

}  // namespace qlora
