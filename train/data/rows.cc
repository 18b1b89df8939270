#include "train/data/rows.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <set>

#include "memory/error.h"
#include "memory/sha256.h"
#include "model/text/unicode.h"

namespace qlora {
namespace {

constexpr std::array<std::string_view, 7> kFormats = {
    "auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "tokens"};
constexpr std::array<std::string_view, 3> kSampleBy = {"document", "paragraph", "line"};

// What rows of a format have, in the order in which `automatic` looks for them.
struct Roles {
  DatasetFormat format;
  std::vector<std::string_view> needed, optional;
};
const std::vector<Roles>& known_roles() {
  static const std::vector<Roles> known = {
      {DatasetFormat::messages, {"messages"}, {"tools", "documents", "chat_template_kwargs"}},
      {DatasetFormat::sharegpt, {"conversations"}, {"tools", "documents", "chat_template_kwargs"}},
      {DatasetFormat::prompt_completion,
       {"prompt", "completion"},
       {"tools", "documents", "chat_template_kwargs"}},
      {DatasetFormat::alpaca, {"instruction", "output"}, {"input", "system"}},
      {DatasetFormat::tokens, {"input_ids"}, {"labels"}},
      {DatasetFormat::text, {"text"}, {}}};
  return known;
}

bool has_role(const Roles& r, std::string_view role) {
  const auto in = [role](const auto& roles) {
    return std::find(roles.begin(), roles.end(), role) != roles.end();
  };
  return in(r.needed) || in(r.optional);
}

void check_role(std::string_view role) {
  std::set<std::string_view> all;
  for (const Roles& r : known_roles()) {
    all.insert(r.needed.begin(), r.needed.end());
    all.insert(r.optional.begin(), r.optional.end());
  }
  if (all.count(role) != 0) return;
  std::string names;
  for (const std::string_view name : all) names += (names.empty() ? "" : ", ") + std::string(name);
  fail(Category::usage, "--columns ", role, ": unknown; choose one of ", names);
}

template <size_t N>
size_t index_of(const std::array<std::string_view, N>& names, std::string_view name, const char* option) {
  const auto it = std::find(names.begin(), names.end(), name);
  if (it != names.end()) return static_cast<size_t>(it - names.begin());
  std::string all;
  for (std::string_view n : names) all += (all.empty() ? "" : ", ") + std::string(n);
  fail(Category::usage, option, " ", name, ": unknown; choose one of ", all);
}

bool ends_with(const std::string& path, std::string_view end) {
  return path.size() > end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0;
}

std::string_view trimmed(std::string_view line) {
  constexpr std::string_view kBlank = " \t\r\n";
  const size_t first = line.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return line.substr(first, line.find_last_not_of(kBlank) + 1 - first);
}

// Kinds of data that the contract knows and this build does not read, each with a way out.
void refuse_unread_kinds(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    const size_t colon = path.rfind(':');
    if (path.find(',') != std::string::npos ||
        (colon != std::string::npos && stat(path.substr(0, colon).c_str(), &info) == 0))
      fail(Category::input, path,
           ": lists of files and weights are not read yet; join the files into one .jsonl");
    fail(Category::input, path,
         ": no such file; data sets of the hub are not fetched yet: give the path of a .jsonl file");
  }
  if (S_ISDIR(info.st_mode))
    fail(Category::input, path, ": folders of data are not read yet; join the files into one .jsonl");
  for (std::string_view end : {".gz", ".zst", ".xz", ".bz2", ".zip"})
    if (ends_with(path, end))
      fail(Category::input, path, ": compressed data is not read yet; unpack it first");
  for (std::string_view end : {".csv", ".tsv", ".parquet", ".arrow"})
    if (ends_with(path, end))
      fail(Category::input, path, ": ", end.substr(1),
           " is not read yet; convert it to .jsonl, a JSON object a line");
}

// parse_json for one row. The library counts lines of its own and quotes the text; for broken syntax this
// says where in the row it broke instead.
Json parse_line(std::string_view line, const std::string& where) {
  try {
    return parse_json(line, where);
  } catch (const Error& e) {
    try {
      [[maybe_unused]] const Json again =
          Json::parse(line.begin(), line.end(), [&](int depth, Json::parse_event_t, Json&) {
            if (depth >= kJsonDepth) throw Error(e);
            return true;
          });
    } catch (const nlohmann::json::parse_error& syntax) {
      if (syntax.byte > line.size())
        fail(Category::input, where, ": the JSON ends before it is complete; a row is one whole line");
      fail(Category::input, where, ": no valid JSON from byte ", syntax.byte, " on; mend or remove the line");
    }
    throw;
  }
}

}  // namespace

DatasetFormat parse_dataset_format(std::string_view name) {
  return static_cast<DatasetFormat>(index_of(kFormats, name, "--dataset-format"));
}
std::string_view name_of(DatasetFormat format) { return kFormats[static_cast<size_t>(format)]; }
SampleBy parse_sample_by(std::string_view name) {
  return static_cast<SampleBy>(index_of(kSampleBy, name, "--sample-by"));
}

Columns::Columns(std::string_view text) {
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view pair = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals + 1 == pair.size())
      fail(Category::usage, "--columns: '", pair, "' is not role=name; write for example prompt=question");
    const std::string_view role = pair.substr(0, equals);
    check_role(role);
    if (!names_.emplace(role, pair.substr(equals + 1)).second)
      fail(Category::usage, "--columns: ", role, " is given twice; keep one");
  }
}

const Json* Columns::find(const Json& row, const std::string& role) const {
  const auto it = row.find(of(role));
  return it == row.end() || it->is_null() ? nullptr : &*it;
}

DataRows::DataRows(const std::string& path, SampleBy sample_by) : path_(path) {
  refuse_unread_kinds(path);
  file_ = MappedFile(path);
  std::string_view text = file_.text();
  sha256_ = sha256_hex(text);
  if (text.substr(0, 3) == "\xef\xbb\xbf") text.remove_prefix(3);
  const std::string_view content = trimmed(text.substr(0, 4096));
  if (ends_with(path, ".txt")) {
    kind_ = Kind::text;
    check_utf8(text);
    if (sample_by == SampleBy::line) split_lines(text);
    if (sample_by == SampleBy::paragraph) split_paragraphs(text);
    if (sample_by == SampleBy::document && !trimmed(text).empty()) lines_.push_back({text, 1});
  } else if (!content.empty() && content.front() == '[' && !ends_with(path, ".jsonl")) {
    kind_ = Kind::json_array;
    check_utf8(text);
    array_ = parse_json(text, path);
  } else if (ends_with(path, ".jsonl") || ends_with(path, ".ndjson") || ends_with(path, ".json") ||
             (!content.empty() && content.front() == '{')) {
    split_lines(text);
  } else if (!trimmed(text).empty()) {
    fail(Category::input, path, ": is neither JSON nor .txt; give a .jsonl file, a JSON object a line");
  }
  if (size() == 0) fail(Category::input, path, ": holds no rows; give a file with a JSON object a line");
  if (size() > UINT32_MAX) fail(Category::input, path, ": more than 2^32 rows; split the file");
}

void DataRows::split_lines(std::string_view text) {
  uint64_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (!trimmed(line).empty()) lines_.push_back({line, number});
  }
}

// Paragraphs are runs of lines that are not blank.
void DataRows::split_paragraphs(std::string_view text) {
  split_lines(text);
  std::vector<Line> paragraphs;
  uint64_t former = 0;
  for (const Line& line : lines_) {
    if (!paragraphs.empty() && line.number == former + 1) {
      std::string_view& whole = paragraphs.back().text;
      whole = {whole.data(), static_cast<size_t>(line.text.data() + line.text.size() - whole.data())};
    } else {
      paragraphs.push_back(line);
    }
    former = line.number;
  }
  lines_ = std::move(paragraphs);
}

void DataRows::check_utf8(std::string_view text) const {
  const size_t bad = unicode::first_invalid(text);
  if (bad == std::string_view::npos) return;
  const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<int64_t>(bad), '\n');
  fail(Category::input, path_, ": line ", line, ": byte ", bad,
       " of the file is not UTF-8; save it as UTF-8");
}

int64_t DataRows::size() const {
  return static_cast<int64_t>(kind_ == Kind::json_array ? array_.size() : lines_.size());
}

std::string DataRows::where(int64_t i) const {
  if (kind_ == Kind::json_array) return cat(path_, ": row ", i + 1);
  return cat(path_, ": line ", lines_[i].number);
}

Json DataRows::row(int64_t i) const {
  if (kind_ == Kind::text) return Json{{"text", lines_[i].text}};
  Json row;
  if (kind_ == Kind::json_array) {
    row = array_[i];
  } else {
    const std::string_view line = trimmed(lines_[i].text);
    const size_t bad = unicode::first_invalid(line);
    if (bad != std::string_view::npos)
      fail(Category::input, where(i), ": byte ", bad + 1, " is not UTF-8; save the file as UTF-8");
    row = parse_line(line, where(i));
  }
  if (!row.is_object())
    fail(Category::input, where(i), ": is ", shown(row), ", no JSON object; a row is one object");
  return row;
}

void Columns::check_for(DatasetFormat format) const {
  const auto& known = known_roles();
  const auto its =
      std::find_if(known.begin(), known.end(), [&](const Roles& r) { return r.format == format; });
  check(its != known.end(), "roles of no format");
  for (const auto& [role, key] : names_)
    if (!has_role(*its, role))
      fail(Category::usage, "--columns ", role, "=", key, ": rows of ", name_of(format), " have no ", role,
           "; leave it out, or give another --dataset-format");
}

namespace {

DatasetFormat detected(const Json& row, const Columns& columns, const std::string& where) {
  const auto has = [&](std::string_view role) { return columns.find(row, std::string(role)) != nullptr; };
  for (const Roles& r : known_roles())
    for (const std::string_view role : r.needed)
      if (columns.name(role) && !has(role))
        fail(Category::input, where, ": has no '", columns.of(std::string(role)),
             "', which --columns names as ", role, "; correct the name");
  for (const Roles& r : known_roles())
    if (std::all_of(r.needed.begin(), r.needed.end(), has)) return r.format;
  std::string keys;
  for (const auto& [key, value] : row.items()) {
    if (keys.size() < 80) keys += (keys.empty() ? "" : ", ") + shown(key);
  }
  fail(Category::input, where, ": the keys ", keys.empty() ? "(none)" : keys,
       " are no known format; name them, for example --columns prompt=question,completion=answer");
}

}  // namespace

DatasetFormat format_of(DatasetFormat asked, const Json& row, const Columns& columns,
                        const std::string& where) {
  const DatasetFormat format = asked == DatasetFormat::automatic ? detected(row, columns, where) : asked;
  columns.check_for(format);
  return format;
}

void check_keys(const DataRows& rows, const Columns& columns) {
  for (const auto& [role, key] : columns.names()) {
    int64_t i = 0;
    while (i < rows.size() && !rows.row(i).contains(key)) ++i;
    if (i == rows.size())
      fail(Category::input, rows.path(), ": no row has '", key, "', which --columns names as ", role,
           "; correct the name");
  }
}

}  // namespace qlora
