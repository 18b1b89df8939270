#include "kernels/grad_norm/grad_norm.h"

#include "kernels/common/rows.h"

#define QLORA_BODY "kernels/grad_norm/grad_norm_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

double l2_norm(Exec& e, std::span<const float> x) {
  constexpr int64_t kChunk = 16384;
  const auto n = static_cast<int64_t>(x.size());
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const Buffer sums =
      e.allocate(Region::workspace, "sums of squares", static_cast<size_t>(chunks) * sizeof(double));
  if (!e.op("l2_norm", 2. * n, 4. * n, 8)) return 0;
  require_cpu(e, "l2_norm");
  const auto body = QLORA_PICK(grad_norm_squares);
  parallel_ranges(e, n, kChunk, [&](int64_t begin, int64_t end) {
    sums.as<double>()[begin / kChunk] = body(x.data() + begin, end - begin);
  });
  double total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += sums.as<double>()[i];
  return std::sqrt(total);
}

}  // namespace qlora
