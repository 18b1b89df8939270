#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/emulator.h"
#include "kernels/cuda/observer.h"
#include "kernels/gemm/gemm_choice.h"
#include "memory/cuda/emulated.h"
#include "memory/cuda/host.h"

// A library that is as free as the real one: an algorithm is a number of parts into which it cuts the sum
// over k, its proposal hangs on the whole shape, and it writes over its workspace. So what expects the same
// bits from calls of other shapes fails here as it would on a card.
namespace qlora::cuda {
namespace {

constexpr uint64_t kMostParts = 4;

std::mutex mutex;
std::vector<std::string> lines;

uint64_t proposal(const Matmul& m) {
  return 1 + static_cast<uint64_t>(m.m % 7 + m.n / 8 + m.k / 8) % kMostParts;
}

void accept(uint64_t parts, const std::string& name) {
  if (parts < 1 || parts > kMostParts)
    fail(Category::input, "table of algorithms: ", name, " on ", device_info(0).name,
         " with cuBLASLt 1: the library refuses its algorithm; make the table again or unset "
         "QLORA_GEMM_TABLE");
}

uint64_t parts_of(const Matmul& m) {
  const std::string gpu = device_info(0).name, name = name_of(m);
  const Algorithm* const named = gemm_algorithms().find(gpu, "1", name);
  const uint64_t parts = named != nullptr ? named->front() : proposal(m);
  accept(parts, name);
  const std::string line = AlgorithmTable::line(gpu, "1", name, {parts}) +
                           (named != nullptr ? "  # from the table" : "  # the library's first");
  const std::lock_guard lock(mutex);
  if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
  return parts;
}

std::vector<float> floats(const bf16* data, int64_t rows, int64_t cols, int64_t stride, bool transposed) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      out[static_cast<size_t>(r * cols + c)] =
          static_cast<float>(transposed ? data[c * stride + r] : data[r * stride + c]);
  return out;
}

float element(const ConstMat& m, int64_t i, int64_t j) {
  return m.dtype == DType::bf16 ? static_cast<float>(m.row<bf16>(i)[j]) : m.row<float>(i)[j];
}

struct Task {
  Matmul m;
  uint64_t parts;
  std::byte* workspace;

  void run() const {
    std::memset(workspace, 0xff, 4096);
    std::memset(workspace + kCublasLtWorkspace - 4096, 0xff, 4096);
    const std::vector<float> a = floats(m.a, m.m, m.k, m.a_stride, m.a_by_k),
                             b = floats(m.b, m.k, m.n, m.b_stride, !m.b_by_k);
    std::vector<float> sum(static_cast<size_t>(m.n)), part(sum.size());
    for (int64_t i = 0; i < m.m; ++i) {
      std::fill(sum.begin(), sum.end(), 0.f);
      for (uint64_t p = 0; p < parts; ++p) {
        std::fill(part.begin(), part.end(), 0.f);
        for (int64_t k = edge(p); k < edge(p + 1); ++k)
          for (int64_t j = 0; j < m.n; ++j)
            part[static_cast<size_t>(j)] +=
                a[static_cast<size_t>(i * m.k + k)] * b[static_cast<size_t>(k * m.n + j)];
        for (size_t j = 0; j < sum.size(); ++j) sum[j] += part[j];
      }
      for (int64_t j = 0; j < m.n; ++j) store(i, j, m.alpha * sum[static_cast<size_t>(j)]);
    }
  }
  int64_t edge(uint64_t p) const { return m.k * static_cast<int64_t>(p) / static_cast<int64_t>(parts); }
  void store(int64_t i, int64_t j, float f) const {
    if (m.beta != 0) f += m.beta * element(m.c, i, j);
    if (m.d.dtype == DType::bf16)
      m.d.row<bf16>(i)[j] = bf16(f);
    else
      m.d.row<float>(i)[j] = f;
  }
};

void put(Exec& e, const Matmul& m, uint64_t parts, void* workspace) {
  check_matmul(m, workspace);
  auto task = std::make_unique<Task>(Task{m, parts, static_cast<std::byte*>(workspace)});
  e.stream().call(
      [](void* argument) {
        std::unique_ptr<Task>(static_cast<Task*>(argument))->run();
        ++emulator::launches;
      },
      task.get());
  static_cast<void>(task.release());  // the stream's from here on
  observe_matmul(e.stream(), m);
}

}  // namespace

void matmul(Exec& e, const Matmul& m, void* workspace) { put(e, m, parts_of(m), workspace); }

void start_matmul(int) {}

std::string matmul_library(int) { return "1"; }

std::vector<Algorithm> propose(int, const Matmul& m, int most) {
  std::vector<Algorithm> out;
  for (uint64_t i = 0; i < kMostParts && out.size() < static_cast<size_t>(most); ++i)
    out.push_back({1 + (proposal(m) - 1 + i) % kMostParts});
  return out;
}

struct ChosenMatmul::State {
  Matmul m;
  uint64_t parts;
};
ChosenMatmul::ChosenMatmul(int, const Matmul& m, const Algorithm& a) : state_(new State{m, a.front()}) {
  accept(a.front(), name_of(m));
}
ChosenMatmul::~ChosenMatmul() = default;
void ChosenMatmul::run(Exec& e, void* workspace) const { put(e, state_->m, state_->parts, workspace); }

std::string matmul_log() {
  const std::lock_guard lock(mutex);
  std::string out;
  for (const std::string& line : lines) out += line + "\n";
  return out;
}

}  // namespace qlora::cuda
