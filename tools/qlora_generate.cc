// qlora-generate: completes a prompt, talks, or answers the rows of a data set.
#include "tools/common/generate_modes.h"
#include "tools/common/main.h"
#include "tools/common/tables.h"

int main(int argc, char** argv) {
  using namespace qlora;
  return tools::run_tool(argc, argv, tools::generate_table, tools::this_build(), tools::generate);
}
