#include "kernels/adamw/adamw.h"

#include "kernels/common/rows.h"

namespace qlora {
namespace {

struct AdamWArgs {
  float *params, *m, *v;
  const float* grads;
  float grad_scale, beta1, rest1, beta2, rest2, decay, rate, epsilon;
};

struct SgdArgs {
  float* params;
  const float* grads;
  float lr, weight_decay, grad_scale;
};

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
  require_cpu(e, "adamw");
  const double lr = hyper.lr, beta1 = hyper.beta1, beta2 = hyper.beta2, t = static_cast<double>(hyper.step);
  const double correction1 = 1 - std::pow(beta1, t), correction2 = std::sqrt(1 - std::pow(beta2, t));
  AdamWArgs a{params.data(), m.data(), v.data(), grads.data(), hyper.grad_scale, 0, 0, 0, 0, 0, 0, 0};
  a.beta1 = hyper.beta1;
  a.rest1 = static_cast<float>(1 - beta1);
  a.beta2 = hyper.beta2;
  a.rest2 = static_cast<float>(1 - beta2);
  a.decay = static_cast<float>(1 - lr * hyper.weight_decay);
  a.rate = static_cast<float>(-lr * correction2 / correction1);
  a.epsilon = static_cast<float>(hyper.epsilon * correction2);
  const auto body = QLORA_PICK(adamw_range);
  parallel_ranges(e, static_cast<int64_t>(params.size()), kRange,
                  [&](int64_t i, int64_t end) { body(a, i, end); });
}

void sgd(Exec& e, float lr, float weight_decay, float grad_scale, std::span<float> params,
         std::span<const float> grads) {
  check(grads.size() == params.size(), "sgd: spans differ in length");
  const auto n = static_cast<double>(params.size());
  if (!e.op("sgd", 5 * n, 8 * n, 4 * n)) return;
  require_cpu(e, "sgd");
  const SgdArgs a{params.data(), grads.data(), lr, weight_decay, grad_scale};
  const auto body = QLORA_PICK(sgd_range);
  parallel_ranges(e, static_cast<int64_t>(params.size()), kRange,
                  [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
