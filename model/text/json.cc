#include "model/text/json.h"

#include <set>
#include <vector>

#include "memory/error.h"

namespace qlora {

OrderedJson parse_json(std::string_view text, const std::string& where) {
  constexpr int kDepth = 200;
  constexpr size_t kKeys = 20'000;  // looking one up takes time linear in their number
  std::vector<std::set<std::string>> keys;
  using Event = OrderedJson::parse_event_t;
  const auto watch = [&](int depth, Event event, const OrderedJson& value) {
    if (depth > kDepth)
      fail(Category::input, where, ": JSON deeper than ", kDepth, " levels; the file is damaged");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second)
      fail(Category::input, where, ": key ", value.dump(), " comes twice; keep one of them");
    if (!keys.empty() && keys.back().size() > kKeys)
      fail(Category::input, where, ": an object with over ", kKeys, " keys; this is not such a file");
    return true;
  };
  try {
    return OrderedJson::parse(text.begin(), text.end(), watch);
  } catch (const OrderedJson::exception& e) {
    // what() is "[json.exception.…] parse error at line 1, column 2: …"
    const std::string_view what = e.what();
    const size_t start = what.find("] ");
    fail(Category::input, where, ": ", what.substr(start == what.npos ? 0 : start + 2),
         "; the file is damaged");
  }
}

}  // namespace qlora
