// roofs [--threads N] [--loops]: what the machine can do at most on N threads (1), as one JSON object, for
// tools/bench; with --loops also what the products' inner loops keep of that.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/roofs/loops.h"
#include "tests/roofs/roofs.h"

using namespace qlora;

namespace {

using namespace qlora::testing;

// The figures of all that `has`, by name.
template <class Flops>
void print_flops(bool (*has)(Arithmetic), Flops&& flops) {
  const char* separator = "";
  for (const Arithmetic a : kArithmetics) {
    if (!has(a)) continue;
    std::printf("%s\"%s\": ", separator, name_of(a));
    flops(a);
    separator = ", ";
  }
}

void print_loops(int threads) {
  std::printf(", \"loops\": {");
  print_flops(has_loop, [&](Arithmetic a) {
    const char* separator = "{";
    for (const Operands o : kOperands) {
      std::printf("%s\"%s\": %.0f", separator, name_of(o), loop_flops(a, o, threads));
      separator = ", ";
    }
    std::printf("}");
  });
  std::printf("}, \"write_bytes\": %.0f", write_bandwidth(threads));
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 1;
  bool loops = false, good = true;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--loops") == 0)
      loops = true;
    else if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
      threads = std::atoi(argv[++i]);
    else
      good = false;
  }
  if (!good || threads < 1) {
    std::fprintf(stderr, "usage: roofs [--threads N] [--loops]\n");
    return 2;
  }
  std::printf("{\"threads\": %d, \"isa\": \"%s\", \"flops\": {", threads, name_of(active_isa()));
  print_flops(supported, [&](Arithmetic a) { std::printf("%.0f", flops_per_second(a, threads)); });
  std::printf("}, \"fastest\": \"%s\", \"read_bytes\": %.0f, \"read_from\": %zu",
              name_of(fastest_arithmetic()), read_bandwidth(threads), beyond_caches());
  if (loops) print_loops(threads);
  std::printf("}\n");
}
