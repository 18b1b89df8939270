#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace qlora::tools {

// An answer's text as it comes, up to the first of several stop texts, which may span the parts. What could
// still become a stop text is held back.
class StopText {
 public:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  // What may be shown now. Nothing more after stopped().
  std::string push(std::string_view part);
  // What was held back; for the end of an answer that no stop text ended.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;  // an empty one never matches
  std::string held_;
  bool stopped_ = false;
};

}  // namespace qlora::tools
