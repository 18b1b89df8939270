#pragma once
// --config FILE: YAML or JSON, one mapping of names to values. The file is hostile: at most 1 MiB and 16
// levels, no duplicate keys, no YAML aliases (they multiply) and no tags but the core ones.
#include <string>
#include <utility>
#include <vector>

namespace qlora::tools {

struct ConfigNode {
  enum class Kind { null, scalar, sequence, mapping } kind = Kind::null;
  std::string scalar;  // numbers and booleans as written in the file
  std::vector<ConfigNode> items;
  std::vector<std::pair<std::string, ConfigNode>> entries;
  int line = 0;  // from 1; 0 for JSON, whose reader does not tell
};

// The file's mapping; an empty file is an empty one. JSON when the name ends in .json or the text begins with
// '{', else YAML. Errors: input (absent, unreadable, too large, malformed), one line with file and place.
ConfigNode read_config_file(const std::string& path);

// The same over text that was read already (of any size); `path` is for messages and the choice of format.
ConfigNode parse_config(const std::string& text, const std::string& path);

}  // namespace qlora::tools
