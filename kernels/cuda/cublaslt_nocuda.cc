#include "kernels/cuda/absent.h"
#include "kernels/cuda/cublaslt.h"

namespace qlora::cuda {

void matmul(Exec&, const Matmul&, void*) { absent(); }
void start_matmul(int) { absent(); }
std::string matmul_log() { return {}; }
std::vector<Algorithm> propose(int, const Matmul&, int) { absent(); }
std::string matmul_library(int) { absent(); }

struct ChosenMatmul::State {};
ChosenMatmul::ChosenMatmul(int, const Matmul&, const Algorithm&) { absent(); }
ChosenMatmul::~ChosenMatmul() = default;
void ChosenMatmul::run(Exec&, void*) const { absent(); }

}  // namespace qlora::cuda
