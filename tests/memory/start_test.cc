// What a program says where CUDA cannot be used: the decision, over what the runtime may find.
#include "memory/cuda/start.h"

#include <gtest/gtest.h>

#include "memory/cuda/host.h"
#include "memory/error.h"

namespace qlora::cuda {
namespace {

Found a_good_one() {
  Found f;
  f.runtime = f.driver = 13000;
  f.devices = 2;
  f.name = "NVIDIA GeForce RTX 3090";
  f.major = 8;
  f.minor = 6;
  return f;
}

// The line names what is wrong and what to do, on one line.
void expect_refused(const Found& f, int device, const std::string& why, const std::string& remedy) {
  const std::string text = refusal(f, device);
  EXPECT_NE(text.find(why), std::string::npos) << text;
  EXPECT_NE(text.find(remedy, text.find(';')), std::string::npos) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
}

TEST(CudaStart, ACardThatServesIsTaken) {
  Found f = a_good_one();
  EXPECT_EQ(refusal(f, 0), "");
  EXPECT_EQ(refusal(f, 1), "");
  for (auto [major, minor] : {std::pair{8, 0}, {8, 9}, {9, 0}, {10, 0}, {12, 0}}) {
    f.major = major;
    f.minor = minor;
    EXPECT_EQ(refusal(f, 0), "") << major << "." << minor;
  }
}

TEST(CudaStart, BuiltWithout) {
  Found f;
  f.built = false;
  expect_refused(f, 0, "built without CUDA", "tools/build --cuda");
}

TEST(CudaStart, Drivers) {
  Found f = a_good_one();
  f.driver = 0;
  f.devices = 0;
  expect_refused(f, 0, "no NVIDIA driver is loaded", "install driver 580 or newer");
  f = a_good_one();
  f.driver = 12090;
  expect_refused(f, 0, "it serves CUDA 12.9, this program has 13.0", "install driver 580 or newer");
  f.runtime = 14010;
  expect_refused(f, 0, "this program has 14.1", "one for CUDA 14.1");
  // Any driver of the runtime's major version serves it, newer ones serve all before.
  f = a_good_one();
  f.runtime = 13020;
  EXPECT_EQ(refusal(f, 0), "");
  f.driver = 14000;
  EXPECT_EQ(refusal(f, 0), "");
  // An old driver is what is said, whatever else fails because of it.
  f.driver = 12090;
  f.failure = "CUDA driver version is insufficient for CUDA runtime version";
  expect_refused(f, 0, "too old", "580");
  f.driver = 13000;
  f.failure = "system has unsupported display driver / cuda driver combination";
  expect_refused(f, 0, "does not start: system has unsupported", "nvidia-smi");
}

TEST(CudaStart, Cards) {
  Found f = a_good_one();
  f.devices = 0;
  expect_refused(f, 0, "no card", "CUDA_VISIBLE_DEVICES");
  f = a_good_one();
  expect_refused(f, 2, "2 cards, cuda:0 to cuda:1", "give one");
  expect_refused(f, -1, "2 cards", "give one");
  f.devices = 1;
  expect_refused(f, 1, "one card, cuda:0", "give");
  f = a_good_one();
  f.name = "Tesla T4";
  f.major = 7;
  f.minor = 5;
  expect_refused(f, 0,
                 "Tesla T4 has compute capability 7.5 (sm_75), which needs fp16 compute, which is not built",
                 "8.0");
}

TEST(CudaStart, TheEmulatedDeviceIsTaken) { EXPECT_NO_THROW(require_device(0)); }

}  // namespace
}  // namespace qlora::cuda
