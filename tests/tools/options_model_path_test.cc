#include <gtest/gtest.h>

#include <optional>

#include "memory/error.h"
#include "tests/support/temp_folder.h"
#include "tools/common/model_path.h"

namespace qlora::tools {
namespace {

namespace fs = std::filesystem;

// Sets a variable for one test and puts back what was there.
class Variable {
 public:
  Variable(const char* name, const std::optional<std::string>& value) : name_(name) {
    if (const char* old = getenv(name)) old_ = old;
    put(value);
  }
  ~Variable() { put(old_); }

 private:
  void put(const std::optional<std::string>& value) const {
    if (value)
      setenv(name_, value->c_str(), 1);
    else
      unsetenv(name_);
  }
  const char* name_;
  std::optional<std::string> old_;
};

class ModelPath : public testing::Test {
 protected:
  // A hub cache with org/name at main, as huggingface_hub lays it out.
  fs::path repository() {
    const fs::path folder = scratch_ / "hub/models--org--name-1.5";
    scratch_.write("hub/models--org--name-1.5/refs/main", kCommit + "\n");
    scratch_.write("hub/models--org--name-1.5/refs/refs/pr/1", kCommit);
    scratch_.write("hub/models--org--name-1.5/blobs/abc", "{}");
    fs::create_directories(folder / "snapshots" / kCommit);
    fs::create_symlink("../../blobs/abc", folder / "snapshots" / kCommit / "config.json");
    return folder;
  }

  static std::string error_of(const std::string& name) {
    try {
      resolve_model(name);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), name.empty() ? 2 : 3) << error.what();
      return error.what();
    }
    return "(no error)";
  }

  const std::string kCommit = std::string(39, 'a') + "1";
  test::TempFolder scratch_;
  Variable home_{"HOME", scratch_.path()}, xdg_{"XDG_CACHE_HOME", std::nullopt},
      hf_{"HF_HOME", scratch_.path()}, cache_{"HF_HUB_CACHE", std::nullopt};
};

TEST_F(ModelPath, WhereTheCacheIs) {
  EXPECT_EQ(hub_cache(), scratch_ / "hub");
  const Variable cache("HF_HUB_CACHE", "/c");
  EXPECT_EQ(hub_cache(), "/c");
  const Variable no_cache("HF_HUB_CACHE", std::nullopt), no_home("HF_HOME", std::nullopt);
  EXPECT_EQ(hub_cache(), scratch_ / ".cache/huggingface/hub");
  const Variable relative("XDG_CACHE_HOME", "rel");
  EXPECT_EQ(hub_cache(), scratch_ / ".cache/huggingface/hub");
  const Variable xdg("XDG_CACHE_HOME", "/x");
  EXPECT_EQ(hub_cache(), "/x/huggingface/hub");
  EXPECT_EQ(short_model_file("smollm2-135m"), "/x/qlora/smollm2-135m-instruct-q4_1.gguf");
}

TEST_F(ModelPath, HubIdsComeFromTheCache) {
  const fs::path snapshot = repository() / "snapshots" / kCommit;
  for (const std::string& name : {std::string("org/name-1.5"), std::string("org/name-1.5@main"),
                                  "org/name-1.5@" + kCommit, std::string("org/name-1.5@refs/pr/1")}) {
    const ResolvedPath found = resolve_model(name);
    EXPECT_EQ(found.path, snapshot) << name;
    EXPECT_EQ(found.hub_id, "org/name-1.5");
    EXPECT_EQ(found.revision, kCommit);
  }
  EXPECT_EQ(resolve_model(snapshot).hub_id,
            "org/name-1.5");  // an existing path wins and still knows its origin
  EXPECT_EQ(resolve_model(snapshot / "config.json").revision, kCommit);
}

TEST_F(ModelPath, AnExistingPathWins) {
  repository();
  const fs::path before = fs::current_path();
  scratch_.write("work/org/name-1.5/config.json", "{}");
  scratch_.write("work/smollm2-135m", "x");
  fs::current_path(scratch_ / "work");
  const ResolvedPath folder = resolve_model("org/name-1.5"), file = resolve_model("smollm2-135m");
  fs::current_path(before);
  EXPECT_EQ(folder.path, "org/name-1.5");
  EXPECT_EQ(folder.hub_id, "");
  EXPECT_EQ(file.path, "smollm2-135m");
}

TEST_F(ModelPath, AbsentOnesSayWhatToRun) {
  repository();
  const auto says = [&](const std::string& name, const std::string& what) {
    const std::string line = error_of(name);
    EXPECT_NE(line.find(what), std::string::npos) << line;
  };
  says("org/other", "run: hf download org/other");
  says("meta-llama/Llama-3.1-8B", "run: hf download meta-llama/Llama-3.1-8B");
  says("org/name-1.5@v2", "hf download org/name-1.5 --revision v2");
  says("org/name-1.5@" + std::string(40, 'b'), "--revision bbbb");
  says("smollm2-135m", "run: tools/quickstart");
  says("smollm2", "short names: smollm2-135m");
  says("", "empty");
  // Never looked up on the hub.
  for (const char* path :
       {"org/name.gguf", "./org/name", "/org/name", "~/name", ".org/name", "../name", "model.safetensors"})
    says(path, "no such file or folder; check the path");
  for (const char* odd : {"org/", "/", "a/b/c", "org/na me", "org/..", "o..g/x", "org/name@", "org/name@a..b",
                          "org/name@/x", "@x/y"})
    EXPECT_EQ(error_of(odd).find("hf download"), std::string::npos) << odd;
}

TEST_F(ModelPath, ShortNamesAreTheQuickstartsFile) {
  const std::string file = scratch_.write(".cache/qlora/smollm2-135m-instruct-q4_1.gguf", "GGUF");
  EXPECT_EQ(resolve_model("smollm2-135m").path, file);
  EXPECT_EQ(resolve_model("smollm2-135m").hub_id, "HuggingFaceTB/SmolLM2-135M-Instruct");
}

TEST_F(ModelPath, LinksLeadToBlobsOnly) {
  const fs::path folder = repository();
  const std::string secret = scratch_.write("secret", "x");
  const fs::path link = folder / "snapshots" / kCommit / "tokenizer.json";
  for (const fs::path& target :
       {fs::path(secret), fs::path("../../../../secret"), fs::path("../../refs/main")}) {
    fs::remove(link);
    fs::create_symlink(target, link);
    EXPECT_NE(error_of("org/name-1.5").find("links out of the hub's cache"), std::string::npos) << target;
  }
}

TEST_F(ModelPath, ABrokenRefIsNamed) {
  repository();
  scratch_.write("hub/models--org--name-1.5/refs/main", "../../../etc");
  EXPECT_NE(error_of("org/name-1.5").find("refs/main: holds no commit"), std::string::npos);
}

TEST_F(ModelPath, DatasetsHaveTheirOwnFolder) {
  fs::create_directories(scratch_ / ("hub/datasets--org--data/snapshots/" + std::string(kCommit)));
  scratch_.write("hub/datasets--org--data/refs/main", kCommit);
  EXPECT_EQ(resolve_dataset("org/data").revision, kCommit);
  try {
    resolve_dataset("org/none");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("hf download org/none --repo-type dataset"), std::string::npos);
  }
}

}  // namespace
}  // namespace qlora::tools
