// --dataset: a completion for each row.
#include <chrono>
#include <iostream>

#include "memory/file.h"
#include "tools/common/generate_modes.h"
#include "tools/common/main.h"
#include "tools/common/model_path.h"
#include "train/data/encode.h"
#include "train/data/rows.h"

namespace qlora::tools {
namespace {

constexpr int64_t kMostRows = 1 << 24;  // prompts are held in memory

// Rows to answer need no answer of their own: one without gets an empty one, which question_of takes away.
Json with_answer(Json row, const Columns& columns) {
  const auto last_role = [](const Json& turns, const char* key) -> std::string {
    if (!turns.is_array() || turns.empty() || !turns.back().is_object()) return "?";
    return turns.back().contains(key) && turns.back()[key].is_string() ? turns.back()[key] : "?";
  };
  if (columns.find(row, "messages")) {
    Json& messages = row[columns.of("messages")];
    const std::string role = last_role(messages, "role");
    if (role != "assistant" && role != "?") messages.push_back({{"role", "assistant"}, {"content", ""}});
  } else if (columns.find(row, "conversations")) {
    Json& turns = row[columns.of("conversations")];
    const std::string from = last_role(turns, "from");
    if (from == "human" || from == "user" || from == "tool")
      turns.push_back({{"from", "gpt"}, {"value", ""}});
  } else if (const Json* prompt = columns.find(row, "prompt"); prompt && !columns.find(row, "completion")) {
    const Json empty = Json::array({{{"role", "assistant"}, {"content", ""}}});
    row[columns.of("completion")] = prompt->is_array() ? empty : Json("");
  } else if (columns.find(row, "instruction") && !columns.find(row, "output")) {
    row[columns.of("output")] = "";
  }
  return row;
}

std::vector<std::vector<int32_t>> read_prompts(const GenerateSession& s, const DataRows& rows) {
  const Columns columns(s.options.find<std::string>("columns").value_or(""));
  DatasetFormat format = parse_dataset_format(s.options.get<std::string>("dataset-format"));
  const ModelRowEncoder encoder(s.tokenizer(), s.text.templates, {}, s.model->desc().vocab);
  if (rows.size() > kMostRows)
    fail(Category::input, rows.path(), ": ", rows.size(), " rows; split it into files of at most ",
         kMostRows);
  std::vector<std::vector<int32_t>> prompts;
  for (int64_t i = 0; i < rows.size(); ++i) {
    const Json row = with_answer(rows.row(i), columns);
    if (i == 0) format = format_of(format, row, columns, rows.where(i));
    prompts.push_back(question_of(row, format, columns, encoder, rows.where(i)).prompt);
    check_room(s.model->desc(), prompts.back().size(), rows.where(i));
  }
  return prompts;
}

std::string line_of(const Json& row) {
  return row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

int generate_dataset(GenerateSession& s) {
  const DataRows rows(resolve_dataset(s.options.get<std::string>("dataset")).path.string());
  const std::vector<std::vector<int32_t>> prompts = read_prompts(s, rows);

  const bool several = s.adapters.size() > 1;
  std::vector<Json> lines(prompts.size(), several ? Json{{"completions", Json::object()}} : Json::object());
  const auto start = std::chrono::steady_clock::now();
  int64_t tokens = 0;
  for (const NamedAdapter& adapter : s.adapters) {
    int64_t begun = 0;
    std::vector<bool> seen(prompts.size());
    const auto on_text = [&](size_t i, const std::string&) {
      if (!seen[i] && s.screen.terminal())
        s.screen.progress({.what = "row", .done = ++begun, .total = rows.size()});
      seen[i] = true;
      return true;
    };
    const auto answers = answer(s.model, s.tokenizer(), adapter.adapter, s.answers, prompts, on_text);
    for (size_t i = 0; i < answers.size(); ++i) {
      tokens += answers[i].tokens;
      (several ? lines[i]["completions"][adapter.name] : lines[i]["completion"]) = answers[i].text;
    }
    s.screen.finish();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const auto output = s.options.find<std::string>("output");
  const bool json = s.options.get<bool>("json");
  std::string text;
  if (output || !json)
    for (const Json& line : lines) text += line_of(line);
  if (output) write_file(*output, text);
  if (!output && !json) std::cout << text;
  if (output) s.screen.line(cat(*output, ": ", rows.size(), " completions"));
  if (json) {
    Json result = {{"rows", rows.size()},
                   {"tokens", tokens},
                   {"seconds", seconds},
                   {"tokens_per_second", static_cast<double>(tokens) / std::max(seconds, 1e-9)}};
    if (output)
      result["output"] = *output;
    else
      result["completions"] = lines;
    print_json(result);
  }
  return 0;
}

}  // namespace qlora::tools
