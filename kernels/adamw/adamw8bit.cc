#include "kernels/adamw/adamw8bit.h"

#include <algorithm>

#include "kernels/adamw/adamw8bit_args.h"
#include "kernels/common/code_table.h"
#include "kernels/common/rows.h"
#include "quant/codebook.h"

namespace qlora {
namespace {

struct AdamW8Args {
  AdamWArgs step;
  const float *map_m, *map_v;
  const CodeTable *table_m, *table_v;
  uint8_t zero_m;  // the code of 0
};

struct Block8 {
  float* params;
  const float* grads;
  uint8_t *m, *v;
  float *absmax_m, *absmax_v;
};

const CodeTable& code_table(bool with_sign) {
  static const CodeTable first = make_code_table(dynamic_map(true)),
                         second = make_code_table(dynamic_map(false));
  return with_sign ? first : second;
}

// Bytes of parameters, gradients and moments that a step reads; all but the gradients are written again.
double bytes_of(const MomentRun& r) { return static_cast<double>(r.count) * (r.eight_bit ? 10.03125 : 16); }

}  // namespace
}  // namespace qlora

#define QLORA_BODY "kernels/adamw/adamw8bit_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {
namespace {

bool inside(int64_t first, int64_t count, size_t size) {
  return first >= 0 && count >= 0 && first <= static_cast<int64_t>(size) - count;
}

void check_run(const MomentRun& r, size_t params, const Moments8& s) {
  check(inside(r.param, r.count, params) && r.count <= kMaxMomentRun,
        "adamw8bit: a run outside the parameters");
  if (r.eight_bit)
    check(inside(r.state, r.count, std::min(s.m.size(), s.v.size())) &&
              inside(r.block, (r.count + kBlock8 - 1) / kBlock8,
                     std::min(s.absmax_m.size(), s.absmax_v.size())),
          "adamw8bit: a run outside the codes");
  else
    check(inside(r.state, r.count, std::min(s.m32.size(), s.v32.size())),
          "adamw8bit: a run outside the fp32 moments");
}

}  // namespace

void adamw8bit(Exec& e, const AdamWHyper& hyper, std::span<float> params, std::span<const float> grads,
               const Moments8& s) {
  check(grads.size() == params.size(), "adamw8bit: spans differ in length");
  check(hyper.step >= 1, "adamw8bit: steps count from 1");
  double elements = 0, read = 0;
  for (const MomentRun& r : s.runs) {
    check_run(r, params.size(), s);
    elements += static_cast<double>(r.count);
    read += bytes_of(r);
  }
  if (!e.op("adamw8bit", 22 * elements, read, read - 4 * elements)) return;
  const AdamWArgs step = adamw_args(hyper, nullptr, nullptr, nullptr, nullptr);
  if (e.on_cuda()) return adamw8bit_cuda(e, step, params.data(), grads.data(), s);
  AdamW8Args a{
      step, dynamic_map(true).data(), dynamic_map(false).data(), &code_table(true), &code_table(false), 0};
  a.zero_m = nearest_entry(a.map_m, 0);
  const auto eight = QLORA_PICK(adamw8bit_run);
  const auto full = QLORA_PICK(adamw_range);
  e.parallel(static_cast<int64_t>(s.runs.size()), [&](int64_t task, int) {
    const MomentRun& r = s.runs[static_cast<size_t>(task)];
    float* p = params.data() + r.param;
    const float* g = grads.data() + r.param;
    if (r.eight_bit) {
      eight(a,
            {p, g, s.m.data() + r.state, s.v.data() + r.state, s.absmax_m.data() + r.block,
             s.absmax_v.data() + r.block},
            r.count);
    } else {
      full(adamw_args(hyper, p, g, s.m32.data() + r.state, s.v32.data() + r.state), 0, r.count);
    }
  });
}

}  // namespace qlora
