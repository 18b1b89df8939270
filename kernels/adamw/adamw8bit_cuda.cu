#include <algorithm>

#include "kernels/adamw/adamw8bit_args.h"
#include "kernels/adamw/adamw_element.h"
#include "kernels/cuda/reduce.h"
#include "quant/blockwise8.h"
#include "quant/codebook.h"

namespace qlora {
namespace cuda {
namespace {

constexpr int kBlocksOfRun = kMaxMomentRun / kBlock8;

// A block of threads a block of moments, a thread an element. Nothing is fused: bits are the definition's.
struct AdamW8Kernel {
  static constexpr int kThreads = kBlock8;
  static constexpr size_t kShared = (2 * 256 + kThreads / kWarp) * sizeof(float);
  AdamWArgs step;
  float* params;
  const float* grads;
  const MomentRun* runs;
  uint8_t *m_codes, *v_codes;
  float *absmax_m, *absmax_v, *m32, *v32;
  float map_m[256], map_v[256];

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const MomentRun run = runs[block_x() / kBlocksOfRun];
    const int64_t first = block_x() % kBlocksOfRun * kBlock8, i = first + thread();
    if (first >= run.count) return;
    if (run.eight_bit) {
      eight_bit(shared, run, first / kBlock8 + run.block, i);
    } else if (i < run.count) {
      AdamWArgs a = step;
      a.params = params + run.param;
      a.grads = grads + run.param;
      a.m = m32 + run.state;
      a.v = v32 + run.state;
      adamw_element(a, i);
    }
  }

  QLORA_DEVICE void eight_bit(SharedMemory shared, const MomentRun& run, int64_t block, int64_t i) const {
    const Shared<float> shared_m = shared.take<float>(256), shared_v = shared.take<float>(256),
                        scratch = shared.take<float>(kThreads / kWarp);
    shared_m[thread()] = map_m[thread()];
    shared_v[thread()] = map_v[thread()];
    barrier();
    const bool inside = i < run.count;
    float m = 0, v = 0;
    if (inside) {
      const float g = grads[run.param + i] * step.grad_scale, p = params[run.param + i];
      const float old_m = shared_m[m_codes[run.state + i]] * absmax_m[block];
      const float old_v = shared_v[v_codes[run.state + i]] * absmax_v[block];
      const float any_m = old_m * step.beta1 + step.rest1 * g;
      const float any_v = old_v * step.beta2 + step.rest2 * g * g;
      if (any_v - any_v == 0.f) {  // finite
        m = any_m;
        v = any_v;
        params[run.param + i] = p * step.decay + step.rate * (m / (sqrt(v) + step.epsilon));
      }
    }
    const float most_m = block_max<kThreads>(max(m, -m), scratch), most_v = block_max<kThreads>(v, scratch);
    code(shared_m, m, most_m, m_codes + run.state, absmax_m + block, inside, i);
    code(shared_v, v, most_v, v_codes + run.state, absmax_v + block, inside, i);
  }

  QLORA_DEVICE void code(Shared<float> map, float x, float most, uint8_t* codes, float* absmax, bool inside,
                         int64_t i) const {
    const float scale = most < 0x1p-126f ? 0.f : most;
    if (thread() == 0) *absmax = scale;
    if (!inside) return;
    int c = 0;
    if (scale > 0) {
      c = nearest_entry(map, x * (1.f / scale));
      // A value whose sign bit is set keeps its sign: the code below 0's.
      if (std::bit_cast<uint32_t>(x) >> 31 != 0 && map[c] == 0.f && c > 0) --c;
    }
    codes[i] = static_cast<uint8_t>(c);
  }
};

}  // namespace
}  // namespace cuda

void adamw8bit_cuda(Exec& e, const AdamWArgs& step, float* params, const float* grads, const Moments8& s) {
  cuda::AdamW8Kernel kernel{step,
                            params,
                            grads,
                            s.runs.data(),
                            s.m.data(),
                            s.v.data(),
                            s.absmax_m.data(),
                            s.absmax_v.data(),
                            s.m32.data(),
                            s.v32.data(),
                            {},
                            {}};
  std::copy_n(dynamic_map(true).data(), 256, kernel.map_m);
  std::copy_n(dynamic_map(false).data(), 256, kernel.map_v);
  cuda::launch(e, {static_cast<int64_t>(s.runs.size()) * cuda::kBlocksOfRun}, cuda::AdamW8Kernel::kShared,
               kernel);
}

}  // namespace qlora
