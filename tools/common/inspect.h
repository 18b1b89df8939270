#pragma once
#include "tools/common/options.h"

namespace qlora::tools {

// The program qlora-inspect: one of its modes, or a summary of what PATH holds.
int inspect(Options& options);

}  // namespace qlora::tools
