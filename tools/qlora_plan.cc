// qlora-plan: the memory that a training run takes, without running it.
#include "kernels/common/isa.h"
#include "tools/common/main.h"
#include "tools/common/plan.h"
#include "tools/common/tables.h"

int main(int argc, char** argv) {
  using namespace qlora;
  return tools::run_tool(argc, argv, tools::plan_table,
                         {[] { return std::string(name_of(active_isa())); }, ""}, tools::plan);
}
