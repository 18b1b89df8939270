// Passes whose frozen weights stay in the model's files: the bits of passes over resident weights, with the
// mapped files out of reach.
#include "model/paged_weights.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "model/mapped_weights.h"
#include "tests/model/gguf_of.h"
#include "tests/support/checking_pages.h"
#include "tests/train/llama_fixture.h"
#include "train/largest_batch.h"

namespace qlora::testing {
namespace {

// While it lives, a touch of the model's mapped files is a fault of the processor.
class OutOfReach {
 public:
  explicit OutOfReach(const Model& model) : files_(model.checkpoint().files()) { protect(PROT_NONE); }
  ~OutOfReach() { protect(PROT_READ); }

 private:
  void protect(int how) const {
    for (const MappedFile* f : files_) mprotect(const_cast<std::byte*>(f->data()), f->size(), how);
  }
  std::vector<const MappedFile*> files_;
};

struct Passed {
  LossSum train, eval;
  std::vector<float> grads;
  uint64_t bytes_read = 0;
};

class PagedWeightsTest : public ::testing::TestWithParam<const char*> {
 protected:
  // Forward and backward, then forward alone. `pages` may be null.
  Passed pass(PagedWeights* pages, const PagedWeights::Through& through = {}) {
    Decoder decoder(model, {DType::bf16, DType::f32}, limits_of(maxima_of({&batch, 1})));
    decoder.set_pages(pages, nullptr);
    Passed out;
    out.grads.resize(static_cast<size_t>(layout.size()));
    const AdapterView adapter{&layout, params.data(), out.grads.data()};
    const std::vector<SavePolicy> policy(static_cast<size_t>(model->block_count()),
                                         SavePolicy::all(Keep::recompute));
    std::vector<int32_t> targets;
    Trace train("train"), eval("evaluate");
    const auto both = [&](Exec& e) {
      {
        Phase phase(e, train);
        out.train = decoder.train(e, token_batch(batch, targets), adapter, policy, {}, 1);
      }
      Phase phase(e, eval);
      out.eval = decoder.evaluate(e, token_batch(batch, targets), adapter);
    };
    Exec rehearsal = Exec::rehearsal(2);
    both(rehearsal);
    train.lay_out();
    eval.lay_out();
    if (pages != nullptr) pages->connect({&train, &eval}, through);
    Arena arena(std::max(train.bytes, eval.bytes));
    Exec e({DeviceKind::cpu, 0}, 2, arena.data());
    e.set_poison(true);
    std::optional<OutOfReach> forbidden;
    if (pages != nullptr) forbidden.emplace(*model);
    both(e);
    if (pages != nullptr) out.bytes_read = pages->traffic().bytes_read;
    return out;
  }

  // As a folder has it, or as a GGUF, where rows of q and k are in another order and so are copied.
  std::shared_ptr<const Model> load() const {
    if (std::string(GetParam()) != "gguf") return load_golden(GetParam());
    io_test::put(folder / "m.gguf", io_test::gguf_of(load_golden("llama")->checkpoint()).build());
    return Model::load(Checkpoint::open(folder / "m.gguf"), {}, 2);
  }

  io_test::TempFolder folder;
  std::shared_ptr<const Model> model = load();
  AdapterLayout layout = layout_of_rank(model->desc(), 4);
  std::vector<float> params = [this] {
    std::vector<float> p(static_cast<size_t>(layout.size()));
    for (size_t i = 0; i < p.size(); ++i) p[i] = .01f * static_cast<float>(i % 13) - .05f;
    return p;
  }();
  Batch batch = batch_of(
      std::string("models/") + (model->desc().tied ? "llama_bias_tied" : "llama") + "/docs.jsonl", {0, 1, 2});
};

void expect_same(const Passed& a, const Passed& b) {
  EXPECT_EQ(a.train.loss, b.train.loss);
  EXPECT_EQ(a.eval.loss, b.eval.loss);
  EXPECT_EQ(a.eval.hits, b.eval.hits);
  ASSERT_EQ(a.grads.size(), b.grads.size());
  EXPECT_EQ(std::memcmp(a.grads.data(), b.grads.data(), a.grads.size() * sizeof(float)), 0);
}

TEST_P(PagedWeightsTest, SameBitsFromTheFile) {
  const Passed resident = pass(nullptr);
  EXPECT_GT(resident.train.loss, 0);
  for (const int slots : {1, 2, 3}) {
    PagedWeights pages(model, slots);
    const Passed paged = pass(&pages);
    expect_same(resident, paged);
    EXPECT_GT(paged.bytes_read, 0u);
  }
}

TEST_P(PagedWeightsTest, SameBitsLateAndOutOfOrder) {
  const Passed resident = pass(nullptr);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    PagedWeights pages(model, 2 + static_cast<int>(seed % 2));
    expect_same(resident, pass(&pages, [&](std::unique_ptr<PageBackend> file, const Pager& pager) {
                  return std::make_unique<CheckingPages>(64, pager.slot_bytes(), pager.slots(),
                                                         CheckingPages::Options{.seed = seed},
                                                         std::move(file));
                }));
  }
}

TEST_P(PagedWeightsTest, AFailedReadIsAnError) {
  // Over one slot: every block forward, all but the last backward, and every block to evaluate.
  for (int64_t n = 0; n < 3 * model->block_count() - 1; ++n) {
    PagedWeights pages(model, 1);
    try {
      pass(&pages, [&](std::unique_ptr<PageBackend> file, const Pager& pager) {
        return std::make_unique<CheckingPages>(64, pager.slot_bytes(), pager.slots(),
                                               CheckingPages::Options{.seed = 1, .fail_at = n},
                                               std::move(file));
      });
      FAIL() << "transfer " << n << " failed and nobody noticed";
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::io) << e.what();
    }
  }
}

// What lies in the file's 64 KiB around the weights, and no more than the file.
// The system maps by windows of 64 KiB: all of a gap between weights that is shorter, of a longer one what
// stands in the windows of its ends, which hangs on where the file was mapped.
TEST_P(PagedWeightsTest, MappedAroundTheWeights) {
  std::vector<std::pair<const std::byte*, size_t>> parts;
  const auto add = [&](WeightView w) {
    for_each_part(
        w, [&](const auto* p, size_t n) { parts.emplace_back(reinterpret_cast<const std::byte*>(p), n); });
  };
  add(model->embed());
  if (!model->desc().tied) add(model->head());
  for (int b = 0; b < model->block_count(); ++b)
    for (const WeightView& w : model->block(b).linear) add(w);
  std::sort(parts.begin(), parts.end());
  constexpr size_t kWindow = size_t{64} << 10;
  size_t in_place = 0, least = 0, most = 0;
  for (const MappedFile* f : model->checkpoint().files()) {
    const std::byte* at = f->data();
    bool between = false;
    for (const auto& [p, n] : parts) {
      if (!f->contains(p)) continue;
      const auto gap = static_cast<size_t>(p - at);
      least += !between ? 0 : gap < kWindow ? gap : gap % kWindow;
      between = true;
      in_place += n;
      at = p + n;
    }
    most += f->size();
  }
  most -= in_place;
  const size_t around = bytes_mapped_around(*model);
  EXPECT_GT(around, 0u);  // the header at least, in a file so small
  EXPECT_GE(around, least);
  EXPECT_LE(around, most);
}

INSTANTIATE_TEST_SUITE_P(Models, PagedWeightsTest,
                         ::testing::Values("llama", "llama/nf4", "llama_bias_tied", "gguf"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

}  // namespace
}  // namespace qlora::testing
