// Prints every CUDA kernel that the libraries launch, by what the sources say of it: its type, threads of a
// block, blocks of a multiprocessor, bytes of shared memory, with tabs between. Fails when a block takes more
// than its cards have: every card, but where the kernel's type says otherwise (kernels/cuda/body.h).
#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "kernels/cuda/emulator.h"

int main() {
  using namespace qlora::cuda;
  std::vector<std::string> lines;
  int failed = 0;
  for (const emulator::KernelFacts& k : emulator::kernels()) {
    const std::unique_ptr<char, decltype(&std::free)> name(
        abi::__cxa_demangle(k.type, nullptr, nullptr, nullptr), &std::free);
    const std::string type = name ? name.get() : k.type;
    lines.push_back(type + '\t' + std::to_string(k.threads) + '\t' + std::to_string(k.blocks) + '\t' +
                    std::to_string(k.shared_bytes));
    if (k.shared_bytes <= k.most_shared_bytes) continue;
    ++failed;
    std::fprintf(stderr, "%s takes %zu bytes of shared memory, its cards have %zu\n", type.c_str(),
                 k.shared_bytes, k.most_shared_bytes);
  }
  std::sort(lines.begin(), lines.end());
  lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
  for (const std::string& line : lines) std::puts(line.c_str());
  return failed > 0 || lines.empty();
}
