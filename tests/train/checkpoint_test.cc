// Checkpoints and the folder they lie in.
#include "train/checkpoint.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "memory/file.h"
#include "tests/support/temp_folder.h"
#include "tests/train/llama_fixture.h"
#include "train/output_folder.h"

namespace qlora::testing {
namespace {
namespace fs = std::filesystem;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto model = load_golden("llama");
    const GoldenAdapter adapter(model->desc(), "llama/adapter");
    const Batch b = batch_of("models/llama/train.jsonl", {0});
    EngineOptions options;
    options.train = maxima_of({&b, 1});
    engine = std::make_unique<Engine>(model, adapter.layout, options);
    engine->reserve();
    fill(1);
  }

  void fill(float value) {
    engine->set_params([&](std::span<float> p) { std::fill(p.begin(), p.end(), value); });
    engine->load_moments([&](MomentPart part, size_t, std::span<std::byte> bytes) {
      const float moment = value + (part == MomentPart::moment1 ? 1 : 2);
      for (size_t i = 0; i < bytes.size(); i += sizeof(float)) std::memcpy(&bytes[i], &moment, sizeof(float));
    });
  }
  CheckpointStore store(RunIdentity identity = {{"--lora-r", "4"}}) {
    return {folder.path(), std::move(identity), [this](const std::string& to) {
              write_file(to + "/adapter", std::string(1, static_cast<char>(engine->params()[0])));
            }};
  }
  static void read(const std::string& from, std::span<float> params) {
    std::fill(params.begin(), params.end(), static_cast<float>(read_file(from + "/adapter", 9)[0]));
  }
  void save(const CheckpointStore& s, int64_t step) {
    fill(static_cast<float>(step));
    s.save(state(step), *engine);
  }
  static RunState state(int64_t step) {
    RunState r;
    r.step = step;
    r.total_steps = 9;
    r.loss_sum = 1.0 / 3;
    r.best_loss = 0.1;
    return r;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& e : fs::directory_iterator(folder.path())) out.push_back(e.path().filename().string());
    std::sort(out.begin(), out.end());
    return out;
  }
  // Changes one byte in the middle of a file.
  static void damage(const std::string& file) {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekg(static_cast<std::streamoff>(fs::file_size(file) / 2));
    const char c = static_cast<char>(f.peek() ^ 1);
    f.seekp(f.tellg());
    f.put(c);
  }

  const test::TempFolder folder;
  std::unique_ptr<Engine> engine;
};

using Names = std::vector<std::string>;

TEST_F(CheckpointTest, ComesBackWhole) {
  const CheckpointStore s = store();
  save(s, 3);
  fill(0);
  const auto found = s.newest([](const std::string& line) { ADD_FAILURE() << line; });
  ASSERT_TRUE(found);
  EXPECT_EQ(found->state.to_json(), state(3).to_json());
  s.load(*found, 9, read, *engine);
  EXPECT_EQ(engine->params().back(), 3);
  int parts = 0;
  engine->save_moments([&](MomentPart part, std::span<const std::byte> bytes) {
    float last;
    std::memcpy(&last, &bytes[bytes.size() - sizeof last], sizeof last);
    EXPECT_EQ(last, part == MomentPart::moment1 ? 4 : 5);
    ++parts;
  });
  EXPECT_EQ(parts, 2);
}

TEST_F(CheckpointTest, AnyDamagePassesOverToTheOneBefore) {
  const CheckpointStore s = store();
  for (const char* file : {"adapter", "optimizer.safetensors", "trainer_state.json"})
    for (const bool gone : {false, true}) {
      save(s, 1);
      save(s, 2);
      const std::string path = folder / "checkpoint-2/" + file;
      if (gone)
        fs::remove(path);
      else if (std::string(file) == "trainer_state.json")
        fs::resize_file(path, fs::file_size(path) / 2);
      else
        damage(path);
      Names said;
      const auto found = s.newest([&](const std::string& line) { said.push_back(line); });
      ASSERT_TRUE(found) << path;
      EXPECT_EQ(found->state.step, 1) << path;
      ASSERT_EQ(said.size(), 1u);
      EXPECT_NE(said[0].find("checkpoint-2"), std::string::npos) << said[0];
    }
}

TEST_F(CheckpointTest, PruneKeepsTheNewestGoodOnes) {
  const CheckpointStore s = store();
  for (const int64_t step : {1, 2, 3}) {
    save(s, step);
    s.prune(2, step);
  }
  EXPECT_EQ(names(), (Names{"checkpoint-2", "checkpoint-3"}));
  // The newest is broken, so the run goes on from 1: the new one must not be what is thrown away.
  save(s, 9);
  damage(folder / "checkpoint-9/adapter");
  save(s, 4);
  s.prune(1, 4);
  EXPECT_EQ(names(), Names{"checkpoint-4"});
  save(s, 5);
  for (const int64_t all : {int64_t{0}, INT64_MAX}) s.prune(all, 5);
  EXPECT_EQ(names(), (Names{"checkpoint-4", "checkpoint-5"}));
}

TEST_F(CheckpointTest, DifferencesAreRefusedWithBothValues) {
  save(store({{"--lora-r", "4"}, {"eval data", "abc"}}), 1);
  const auto refused = [&](RunIdentity identity, int64_t steps, const std::vector<std::string>& says) {
    const CheckpointStore s = store(std::move(identity));
    try {
      s.load(CheckpointStore::open(folder / "checkpoint-1"), steps, read, *engine);
      ADD_FAILURE() << says[0] << " was taken";
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::usage);
      for (const std::string& word : says)
        EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  };
  refused({{"--lora-r", "8"}, {"eval data", "abc"}}, 9, {"--lora-r 4", "8"});
  refused({{"--lora-r", "4"}}, 9, {"eval data", "abc", "(none)"});
  refused({{"--lora-r", "4"}, {"eval data", "abc"}, {"--seed", "7"}}, 9, {"--seed", "7", "(none)"});
  refused({{"--lora-r", "4"}, {"eval data", "abc"}}, 8, {"9 steps", "8"});
  store({{"--lora-r", "4"}, {"eval data", "abc"}})
      .load(CheckpointStore::open(folder / "checkpoint-1"), 12, read, *engine);
}

TEST_F(CheckpointTest, HostileStatesAreRefused) {
  const CheckpointStore s = store();
  save(s, 1);
  const std::string file = folder / "checkpoint-1/trainer_state.json";
  const std::string good = read_file(file, 1 << 20);
  const Json j = Json::parse(good);
  std::vector<std::string> bad = {"", "[]", "{}", "{\"files\": 1}", std::string(100000, '[')};
  const auto with = [&](const char* pointer, const Json& value) {
    Json other = j;
    other[Json::json_pointer(pointer)] = value;
    bad.push_back(other.dump());
  };
  with("/state/step", -1);
  with("/state/step", "1");
  with("/state", nullptr);
  with("/files/adapter/bytes", -1);
  with("/files/adapter", 5);
  with("/files/..~1x", Json{{"bytes", 1}, {"sha256", ""}});
  for (const std::string& text : bad) {
    write_file(file, text);
    try {
      CheckpointStore::open(folder / "checkpoint-1");
      ADD_FAILURE() << text.substr(0, 200);
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::input) << e.what();
    }
  }
}

TEST_F(CheckpointTest, OutputFolderGoesWhenNothingCameOfIt) {
  const std::string out = folder / "out";
  { const OutputFolder unused(out, OutputFolder::Use::fresh); }
  EXPECT_FALSE(fs::exists(out));
  {
    const OutputFolder used(out, OutputFolder::Use::fresh);
    EXPECT_THROW(OutputFolder(out, OutputFolder::Use::resume), Error);
    write_file(out + "/metrics.jsonl", "");
  }
  EXPECT_TRUE(fs::exists(out + "/metrics.jsonl"));
}

TEST_F(CheckpointTest, OutputFolderIsClearedOnlyWhenAsked) {
  fs::create_directories(folder / "checkpoint-1");
  fs::create_directories(folder / ".partial-2");
  write_file(folder / "notes", "");
  EXPECT_THROW(OutputFolder(folder.path(), OutputFolder::Use::fresh), Error);
  {
    const OutputFolder o(folder.path(), OutputFolder::Use::overwrite);
    EXPECT_TRUE(fs::exists(folder / "checkpoint-1"));
    o.clear();
  }
  EXPECT_EQ(names(), (Names{".lock", "notes"}));
  const OutputFolder now_free(folder.path(), OutputFolder::Use::fresh);
}

}  // namespace
}  // namespace qlora::testing
