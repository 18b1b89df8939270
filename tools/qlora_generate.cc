// qlora-generate: completes a prompt, talks, or answers the rows of a data set.
#include "kernels/common/isa.h"
#include "tools/common/generate_modes.h"
#include "tools/common/main.h"
#include "tools/common/tables.h"

int main(int argc, char** argv) {
  using namespace qlora;
  return tools::run_tool(argc, argv, tools::generate_table,
                         {[] { return std::string(name_of(active_isa())); }, ""}, tools::generate);
}
