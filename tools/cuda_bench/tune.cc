#include <filesystem>
#include <map>

#include "kernels/cuda/observer.h"
#include "kernels/gemm/gemm_choice.h"
#include "memory/file.h"
#include "model/io/json.h"
#include "tools/cuda_bench/parts.h"
#include "tools/cuda_bench/step.h"

namespace qlora::bench {
namespace {

// Each of the library's products, once, by its name in the table.
class Collector : public cuda::Observer {
 public:
  Collector() { cuda::observer = this; }
  ~Collector() override { cuda::observer = nullptr; }
  Collector(const Collector&) = delete;
  void launched(cuda::Stream&, const char*) override {}
  void multiplied(cuda::Stream&, const cuda::Matmul& m) override { found.emplace(cuda::name_of(m), m); }
  std::map<std::string, cuda::Matmul> found;
};

// Blocks are alike, but the first carries no gradient to its input.
StepSize two_blocks(StepSize s) {
  Json config = parse_json(s.config, s.name);
  if (config.contains("num_hidden_layers") && config["num_hidden_layers"] > 2)
    config["num_hidden_layers"] = 2;
  s.config = config.dump();
  s.accumulation = 1;
  return s;
}

std::map<std::string, cuda::Matmul> products_of(const Bench& b) {
  Training training(b.device, two_blocks(b.sizes.large));
  Collector collector;
  training.step();
  return collector.found;
}

// The same product over memory of its own.
class Operands {
 public:
  Operands(cuda::Stream& stream, cuda::Matmul m) : m_(m) {
    m_.a = drawn(stream, m.a_by_k ? m.k : m.m, m.a_stride).row<bf16>(0);
    m_.b = drawn(stream, m.b_by_k ? m.k : m.n, m.b_stride).row<bf16>(0);
    m_.d.data = sum(stream, m.d.stride).data;
    // A sum in place stays one.
    if (m.beta != 0) m_.c.data = m.c.data == m.d.data ? m_.d.data : sum(stream, m.c.stride).data;
  }
  const cuda::Matmul& product() const { return m_; }

 private:
  ConstMat drawn(cuda::Stream& stream, int64_t rows, int64_t stride) {
    return memory_.emplace_back(stream, rows, stride).input();
  }
  Mat sum(cuda::Stream& stream, int64_t stride) {
    return memory_.emplace_back(stream, m_.m, stride, m_.d.dtype).view();
  }
  cuda::Matmul m_;
  std::vector<DrawnMatrix> memory_;
};

}  // namespace

void tune(Bench& b, const std::string& path) {
  if (cuda_gemm() == CudaGemm::own)
    fail(Category::usage, "QLORA_GEMM=own: has no products of cuBLASLt's to tune; unset it");
  cuda::AlgorithmTable table;
  if (std::filesystem::exists(path)) table = cuda::AlgorithmTable::load(path);
  const std::string gpu = cuda::device_info(b.device).name;
  const auto products = products_of(b);
  const std::string library = cuda::matmul_library(b.device);
  Exec e({DeviceKind::cuda, b.device}, 1, nullptr);
  const MatmulSpace space(b.device);
  for (const auto& [name, m] : products) {
    if (!b.time_for(name)) continue;
    const Operands operands(e.stream(), m);
    const Fastest f = fastest(b, e, operands.product(), space.data());
    table.set(gpu, library, name, f.algorithm);
    write_file(path, table.text());
    const double flops = 2e-12 * static_cast<double>(m.m * m.n) * static_cast<double>(m.k);
    b.report.add({"tune", name, f.seconds, flops / f.seconds, "TFLOP/s", flops / f.first,
                  "the library's first", cat("proposal ", f.which + 1, " of ", f.of)});
  }
  b.report.say(cat(path, ": for QLORA_GEMM_TABLE, hash ", table.hash()));
}

}  // namespace qlora::bench
