// qlora-plan: the memory that a training run takes, without running it.
#include "tools/common/main.h"
#include "tools/common/plan.h"
#include "tools/common/tables.h"

int main(int argc, char** argv) {
  using namespace qlora;
  return tools::run_tool(argc, argv, tools::plan_table, tools::this_build(), tools::plan);
}
