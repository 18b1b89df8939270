// Nothing allocates in the training loop: every allocation of this process goes through the counters below.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <vector>

#include "tests/train/llama_fixture.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<long> allocations{0};
void count() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer owns malloc and tells of each call. (Debian's GCC ships the function without its header.)
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                         void (*)(const volatile void*));
[[maybe_unused]] const int hooked = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, size_t) { count(); }, [](const volatile void*) {});
#else
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) {
  count();
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  count();
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  count();
  return __libc_realloc(p, n);
}
void* aligned_alloc(size_t align, size_t n) {
  count();
  return __libc_memalign(align, n);
}
int posix_memalign(void** p, size_t align, size_t n) {
  count();
  *p = __libc_memalign(align, n);
  return *p == nullptr ? 12 : 0;
}
}
#endif

namespace qlora::testing {
namespace {

long counted(const std::function<void()>& f) {
  allocations = 0;
  counting = true;
  f();
  counting = false;
  return allocations;
}

TEST(Allocation, CountersCount) {
  std::vector<int> grows;
  EXPECT_EQ(counted([&] { grows.resize(100); }), 1);
}

TEST(Allocation, NoneInAStepAfterTheFirst) {
  const std::vector<Batch> batches = {batch_of("models/llama/train.jsonl", {0}),
                                      batch_of("models/llama/train.jsonl", {1, 2, 3}),
                                      batch_of("models/llama/train.jsonl", {4, 5})};
  for (const bool quantize : {false, true})
    for (const DType compute : {DType::f32, DType::bf16})
      for (const Checkpointing c : {Checkpointing::none, Checkpointing::all}) {
        BaseSpec spec;
        if (quantize) spec.quantize = QuantizedSpec{};
        const auto model = load_golden("llama", spec);
        const GoldenAdapter adapter(model->desc(), "llama/adapter");
        EngineOptions options;
        options.numerics.compute = compute;
        options.threads = 2;
        options.train = options.eval = maxima_of(batches);
        options.lora_dropout = 0.05f;
        options.checkpointing = c;
        Engine engine(model, adapter.layout, options);
        engine.reserve();
        set_params(engine, adapter.params);
        const auto step = [&](const Batch& b, int64_t n) {
          engine.zero_grads();
          engine.train(b, {1, static_cast<uint64_t>(n), 0, 0.05f}, 0.1f);
          AdamWHyper h;
          h.step = n + 1;
          h.grad_scale = static_cast<float>(1 / engine.grad_norm());
          engine.update(h);
        };
        step(batches[0], 0);
        engine.evaluate(batches[0]);
        for (size_t i = 1; i < batches.size(); ++i) {
          EXPECT_EQ(counted([&] { step(batches[i], static_cast<int64_t>(i)); }), 0)
              << name_of(compute) << (quantize ? " nf4" : " 16 bits");
          EXPECT_EQ(counted([&] { engine.evaluate(batches[i]); }), 0);
        }
      }
}

TEST(Allocation, NoneInAnUpdateWhereverTheMomentsAre) {
  const Batch b = batch_of("models/llama/train.jsonl", {0});
  const auto model = load_golden("llama");
  for (const OptimizerKind kind : {OptimizerKind::adamw_8bit, OptimizerKind::paged_adamw_32bit,
                                   OptimizerKind::paged_adamw_8bit, OptimizerKind::sgd})
    for (const bool always : {false, true}) {
      EngineOptions options;
      options.threads = 2;
      options.train = maxima_of({&b, 1});
      options.optimizer = kind;
      options.paging = {100000, 2, always, std::filesystem::temp_directory_path().string(), {}};
      Engine engine(model, layout_of_rank(model->desc(), 32), options);
      engine.reserve();
      AdamWHyper h;
      engine.update(h);
      EXPECT_EQ(counted([&] { engine.update(h); }), 0)
          << kOptimizerNames[static_cast<size_t>(kind)] << (always ? " paged" : "");
    }
}

}  // namespace
}  // namespace qlora::testing
