// qlora-inspect: what a model, adapter, checkpoint or data file holds; tokenizes and renders.
#include "tools/common/inspect.h"
#include "tools/common/main.h"
#include "tools/common/tables.h"

int main(int argc, char** argv) {
  using namespace qlora;
  return tools::run_tool(argc, argv, tools::inspect_table, tools::this_build(), tools::inspect);
}
