#include "train/eval_score.h"

namespace qlora {
namespace {

std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r\v\f";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
}

// The text as one JSON object; of a key that stands twice the last counts, as elsewhere. Keys are sorted, so
// that objects compare whatever their order.
std::optional<nlohmann::json> object_of(std::string_view text) {
  bool deep = false;
  const auto value = nlohmann::json::parse(
      text.begin(), text.end(),
      [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
        deep |= depth > kJsonDepth;
        return !deep;
      },
      false);
  if (deep || !value.is_object()) return std::nullopt;
  return std::make_optional<nlohmann::json>(value);  // with nlohmann/json 3.10 `return value` is ambiguous
}

}  // namespace

void AnswerScores::add(std::string_view answer, std::string_view wanted) {
  answer = stripped(answer);
  wanted = stripped(wanted);
  ++rows_;
  exact_ += answer == wanted;
  const auto got = object_of(answer), want = object_of(wanted);
  valid_json_ += got.has_value();
  if (!want) return;
  fields_ += static_cast<int64_t>(want->size());
  if (!got) return;
  for (const auto& [key, value] : want->items()) {
    const auto it = got->find(key);
    right_ += it != got->end() && *it == value;
  }
}

std::optional<double> AnswerScores::fields_right() const {
  if (fields_ == 0) return std::nullopt;
  return share(right_, fields_);
}

Json AnswerScores::to_json() const {
  const auto fields = fields_right();
  return {{"exact_match", exact_match()},
          {"fields_right", fields ? Json(*fields) : Json(nullptr)},
          {"valid_json", valid_json()}};
}

}  // namespace qlora
