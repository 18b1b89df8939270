// What tests of CUDA run on in test_cuda and test_cuda_train: a card, in place of the emulator that the other
// programs have.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/cuda/emulator.h"
#include "memory/cuda/emulated.h"
#include "memory/cuda/start.h"

namespace {

// No card: nothing is tested, which is not a success.
constexpr int kNoCard = 77;

class Card : public testing::Environment {
 public:
  void SetUp() override {
    const std::string why = qlora::cuda::refusal(qlora::cuda::find(0), 0);
    if (why.empty()) return;
    std::fprintf(stderr, "cuda:0: %s\n", why.c_str());
    std::_Exit(kNoCard);
  }
};
[[maybe_unused]] testing::Environment* const card = testing::AddGlobalTestEnvironment(new Card);
// The CPU's bodies are tested by test_kernels.
[[maybe_unused]] const int only_cuda = setenv("QLORA_TEST_BODIES", "cuda", 1);

}  // namespace

namespace qlora::cuda {

// The emulator's controls, as tests use them before each case. A case's variants run one after the other on
// the card, and must give the same bits there too.
void emulate(const EmulatedDevice&) { ++emulator::launches; }

}  // namespace qlora::cuda
