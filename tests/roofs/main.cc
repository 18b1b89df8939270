// roofs [--threads N]: what the machine can do at most on N threads (1), as one JSON object, for tools/bench.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/roofs/roofs.h"

using namespace qlora;

int main(int argc, char** argv) {
  const int threads = argc == 3 && std::strcmp(argv[1], "--threads") == 0 ? std::atoi(argv[2]) : argc == 1;
  if (threads < 1) {
    std::fprintf(stderr, "usage: roofs [--threads N]\n");
    return 2;
  }
  std::printf("{\"threads\": %d, \"isa\": \"%s\", \"flops\": {", threads, name_of(active_isa()));
  const char* separator = "";
  for (const testing::Arithmetic a : testing::kArithmetics) {
    if (!testing::supported(a)) continue;
    std::printf("%s\"%s\": %.0f", separator, testing::name_of(a), testing::flops_per_second(a, threads));
    separator = ", ";
  }
  std::printf("}, \"fastest\": \"%s\", \"read_bytes\": %.0f, \"read_from\": %zu}\n",
              testing::name_of(testing::fastest_arithmetic()), testing::read_bandwidth(threads),
              testing::beyond_caches());
}
