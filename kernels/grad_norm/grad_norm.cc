#include "kernels/grad_norm/grad_norm.h"

#include "kernels/common/rows.h"
#include "kernels/grad_norm/grad_norm_args.h"

#define QLORA_BODY "kernels/grad_norm/grad_norm_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

double l2_norm(Exec& e, std::span<const float> x) {
  const auto n = static_cast<int64_t>(x.size());
  const int64_t chunks = (n + kNormChunk - 1) / kNormChunk;
  const Buffer sums =
      e.allocate(Region::workspace, "sums of squares", static_cast<size_t>(chunks + 1) * sizeof(double));
  if (!e.op("l2_norm", 2. * n, 4. * n, 8)) return 0;
  if (e.on_cuda()) return std::sqrt(squares_cuda(e, x, sums.as<double>()));
  const auto body = QLORA_PICK(grad_norm_squares);
  parallel_ranges(e, n, kNormChunk, [&](int64_t begin, int64_t end) {
    sums.as<double>()[begin / kNormChunk] = body(x.data() + begin, end - begin);
  });
  double total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += sums.as<double>()[i];
  return std::sqrt(total);
}

}  // namespace qlora
