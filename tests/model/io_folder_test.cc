#include <cmath>

#include "model/io/folder_writer.h"
#include "model/io/json.h"
#include "model/io/safetensors.h"
#include "model/io/stored_checkpoint.h"
#include "tests/model/io_support.h"

namespace qlora {
namespace {

using io_test::expect_error;
using io_test::get;
using io_test::kModels;
using io_test::TempFolder;

// What bitsandbytes and transformers saved, byte for byte: tensors, quant_state, order, config.
TEST(FolderWriter, Nf4IsTheReferencesFolder) {
  const auto base = Checkpoint::open(kModels + "/llama");
  for (const int threads : {1, 2}) {
    const TempFolder folder;
    FolderSpec spec;
    spec.quantize = QuantizedSpec{Format::nf4, 64, true};
    spec.threads = threads;
    double last = 0;
    spec.progress = [&](double share) {
      EXPECT_GE(share, last);
      last = share;
    };
    write_model_folder(*base, folder.path(), spec);
    EXPECT_NEAR(last, 1, 1e-9);
    for (const char* name : {"model.safetensors", "config.json", "generation_config.json"})
      EXPECT_EQ(get(folder / name), get(kModels + "/llama/nf4/" + name)) << name;
  }
}

TEST(FolderWriter, PlainIsTheFolderItself) {
  for (const char* model : {"/llama", "/llama_bias_tied", "/llama_rope3"}) {
    const TempFolder folder;
    write_model_folder(*Checkpoint::open(kModels + model), folder.path(), {});
    EXPECT_EQ(get(folder / "model.safetensors"), get(kModels + model + "/model.safetensors")) << model;
    EXPECT_EQ(read_json(folder / "config.json"), read_json(kModels + model + "/config.json"));
  }
}

std::vector<float> rows_of(const Checkpoint& c, const ExpectedTensor& e) {
  if (e.vector) return c.read_vector(e.name(), e.cols);
  std::vector<float> out(static_cast<size_t>(e.rows * e.cols));
  c.read_rows(e.name(), 0, e.rows, out.data());
  return out;
}

TEST(FolderWriter, EveryFormatComesBack) {
  const auto base = Checkpoint::open(kModels + "/llama_bias_tied");
  struct Case {
    std::optional<QuantizedSpec> quantize;
    std::optional<DType> dtype;
  };
  for (const Case& k :
       {Case{QuantizedSpec{Format::nf4, 64, false}, {}}, Case{QuantizedSpec{Format::fp4, 128, true}, {}},
        Case{QuantizedSpec{Format::nf4, 4096, true}, DType::f32},
        Case{QuantizedSpec{Format::int8, 64, false}, {}}, Case{{}, DType::f32}, Case{{}, DType::f16}}) {
    const TempFolder folder;
    FolderSpec spec;
    spec.quantize = k.quantize;
    spec.dtype = k.dtype;
    write_model_folder(*base, folder.path(), spec);
    const auto c = Checkpoint::open(folder.path());
    ASSERT_EQ(c->quantization().has_value(), k.quantize.has_value());
    if (k.quantize) {
      EXPECT_EQ(c->quantization()->format, k.quantize->format);
      EXPECT_EQ(c->quantization()->double_quant, k.quantize->double_quant);
    }
    EXPECT_EQ(c->value_dtype("model.norm.weight"), k.dtype.value_or(DType::bf16));
    for (const ExpectedTensor& e : expected_tensors(base->desc())) {
      std::vector<float> want = rows_of(*base, e);
      const std::vector<float> have = rows_of(*c, e);
      if (!k.quantize || !e.linear || e.vector) {
        for (float& f : want) f = round_to(k.dtype.value_or(DType::f32), f);  // fp16 has no small exponents
        EXPECT_EQ(have, want) << e.name();
        continue;
      }
      // A code is off by at most half the widest gap (FP4: 1/6 of the block's scale), plus 1% of the scale
      // for its own double quantization; the scale is at most the tensor's largest value.
      float most = 0;
      for (const float f : want) most = std::max(most, std::abs(f));
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_LE(std::abs(have[i] - want[i]), 0.18f * most) << e.name() << " " << i;
    }
  }
}

TEST(FolderWriter, Shards) {
  const auto base = Checkpoint::open(kModels + "/llama");
  const TempFolder folder;
  FolderSpec spec;
  spec.quantize = QuantizedSpec{};
  spec.max_shard = 100000;
  write_model_folder(*base, folder.path(), spec);
  const Json index = read_json(folder / "model.safetensors.index.json");
  const SafetensorsFolder shards(folder.path());
  EXPECT_EQ(shards.files().size(), 4u);
  EXPECT_EQ(index["weight_map"].size(), shards.tensors().size());
  uint64_t total = 0;
  const SafetensorsFile whole(kModels + "/llama/nf4/model.safetensors");
  for (const TensorInfo& t : whole.tensors()) {
    total += t.bytes;
    const auto* e = shards.find(t.name);
    ASSERT_NE(e, nullptr) << t.name;
    EXPECT_EQ(std::memcmp(e->data(), whole.data(t), t.bytes), 0) << t.name;
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_TRUE(Checkpoint::open(folder.path())->quantization().has_value());
}

TEST(FolderWriter, QuantizedBasesAreRefused) {
  const TempFolder folder;
  const auto base = Checkpoint::open(kModels + "/llama/nf4");
  expect_error(Category::usage, {"quantized already"}, [&] { write_model_folder(*base, folder.path(), {}); });
}

// Python 3.11: repr(x).
TEST(FolderWriter, NumbersAsPythonPrintsThem) {
  EXPECT_EQ(python_repr(0.04471146687865257), "0.04471146687865257");
  EXPECT_EQ(python_repr(0), "0.0");
  EXPECT_EQ(python_repr(1), "1.0");
  EXPECT_EQ(python_repr(0.0001), "0.0001");
  EXPECT_EQ(python_repr(0.00001), "1e-05");
  EXPECT_EQ(python_repr(1.5e-7), "1.5e-07");
  EXPECT_EQ(python_repr(123456), "123456.0");
  EXPECT_EQ(python_repr(1e15), "1000000000000000.0");
  EXPECT_EQ(python_repr(1e16), "1e+16");
  EXPECT_EQ(python_repr(-2.5), "-2.5");
  EXPECT_EQ(quant_state_json({Format::fp4, 128, false}, DType::f16, 3, 5, 0),
            R"({"quant_type": "fp4", "blocksize": 128, "dtype": "float16", "shape": [3, 5]})");
}

}  // namespace
}  // namespace qlora
