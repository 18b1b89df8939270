#pragma once
// qlora-plan's body, and how qlora-train shows the same plan.
#include <string>
#include <vector>

#include "model/io/json.h"
#include "tools/common/options.h"
#include "train/engine.h"

namespace qlora::tools {

int plan(Options& options);

// The table: a line a region, layers of one thing together, "name  bytes  why"; the sum last.
std::vector<std::string> plan_table_lines(const EnginePlan& plan);

// {"total_bytes", "device_bytes", "host_bytes", "file_bytes", "budget_bytes", "host_budget_bytes" (null:
// none), "regions", "choices", "fits"}; a field with one choice in all layers has one entry, else one for
// each layer; "base" is the frozen weights.
Json plan_json(const EnginePlan& plan);

// Memory over a microbatch as an SVG: what is there all the time below, above it the arena's live bytes by
// region, event by event, beside the budget.
std::string plan_picture(const Engine& engine, const std::string& title);

}  // namespace qlora::tools
