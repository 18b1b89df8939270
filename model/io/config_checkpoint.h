#pragma once
#include <memory>
#include <string>

#include "model/io/checkpoint.h"

namespace qlora {

// The shapes of a model of which there may be a config.json alone: `path` is that file, or a folder with no
// weights in it. What it answers for can be outlined and planned, not read. A path with weights opens as
// Checkpoint::open has it. Category::input as there.
std::unique_ptr<Checkpoint> open_shapes(const std::string& path);

}  // namespace qlora
