#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace qlora::tools {

// Edits (insert, delete, replace, swap of neighbours) between two names; case counts for nothing.
int edit_distance(std::string_view a, std::string_view b);

// The candidate with the fewest edits; a candidate that `name` begins, or that begins with it, counts as
// nearer. The first of equals; empty when there are no candidates.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace qlora::tools
