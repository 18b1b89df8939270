#include "kernels/adamw/adamw.h"

#include "kernels/adamw/adamw_args.h"
#include "kernels/common/rows.h"

namespace qlora {
namespace {

constexpr int64_t kRange = 16384;

}  // namespace
}  // namespace qlora

#define QLORA_BODY "kernels/adamw/adamw_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void adamw(Exec& e, const AdamWHyper& hyper, std::span<float> params, std::span<const float> grads,
           std::span<float> m, std::span<float> v) {
  check(grads.size() == params.size() && m.size() == params.size() && v.size() == params.size(),
        "adamw: spans differ in length");
  check(hyper.step >= 1, "adamw: steps count from 1");
  const auto n = static_cast<double>(params.size());
  if (!e.op("adamw", 14 * n, 16 * n, 12 * n)) return;
  const AdamWArgs a = adamw_args(hyper, params.data(), grads.data(), m.data(), v.data());
  if (e.on_cuda()) return adamw_cuda(e, a, static_cast<int64_t>(params.size()));
  const auto body = QLORA_PICK(adamw_range);
  parallel_ranges(e, static_cast<int64_t>(params.size()), kRange,
                  [&](int64_t i, int64_t end) { body(a, i, end); });
}

void sgd(Exec& e, double lr, double weight_decay, float grad_scale, std::span<float> params,
         std::span<const float> grads) {
  check(grads.size() == params.size(), "sgd: spans differ in length");
  const auto n = static_cast<double>(params.size());
  if (!e.op("sgd", 5 * n, 8 * n, 4 * n)) return;
  const SgdArgs a{params.data(), grads.data(), static_cast<float>(lr), static_cast<float>(weight_decay),
                  grad_scale};
  if (e.on_cuda()) return sgd_cuda(e, a, static_cast<int64_t>(params.size()));
  const auto body = QLORA_PICK(sgd_range);
  parallel_ranges(e, static_cast<int64_t>(params.size()), kRange,
                  [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
