#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "model/io/json.h"

namespace qlora {

// How answers compare with the wanted ones; both are stripped of white space at their ends first.
class AnswerScores {
 public:
  void add(std::string_view answer, std::string_view wanted);
  int64_t rows() const { return rows_; }
  int64_t exact() const { return exact_; }  // answers equal to the wanted ones, to the byte
  double exact_match() const { return share(exact_, rows_); }      // of all rows
  double valid_json() const { return share(valid_json_, rows_); }  // answers that are one JSON object
  // Of the key-value pairs at the top of the wanted answers that are JSON objects, the share that the answers
  // have with an equal value (1 equals 1.0; the order of keys does not count). Absent when no wanted answer
  // is one.
  std::optional<double> fields_right() const;
  // {"exact_match", "fields_right", "valid_json"}
  Json to_json() const;

 private:
  static double share(int64_t part, int64_t all) {
    return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
  }
  int64_t rows_ = 0, exact_ = 0, valid_json_ = 0, fields_ = 0, right_ = 0;
};

}  // namespace qlora
