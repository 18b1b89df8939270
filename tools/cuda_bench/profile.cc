#include "tools/cuda_bench/profile.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>

#include "kernels/cuda/cublaslt.h"

namespace qlora::bench {
namespace {

std::string readable(const char* mangled) {
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr), &std::free);
  std::string text = name ? name.get() : mangled;
  for (const std::string part : {"qlora::", "cuda::", "attention::", "(anonymous namespace)::"})
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part))
      text.erase(at, part.size());
  return text;
}

}  // namespace

Profile::Profile(cuda::Stream& stream) : stream_(&stream) {
  check(cuda::observer == nullptr, "two profiles at a time");
  stamps_.emplace_back(stream.device()).record(stream);
  cuda::observer = this;
}
Profile::~Profile() { cuda::observer = nullptr; }

void Profile::note(cuda::Stream& stream, const std::string& name, double flops) {
  if (stream.handle() != stream_->handle()) return;
  stamps_.emplace_back(stream.device()).record(stream);
  names_.emplace_back(name, flops);
}

void Profile::launched(cuda::Stream& stream, const char* kernel) { note(stream, kernel, 0); }

void Profile::multiplied(cuda::Stream& stream, const cuda::Matmul& p) {
  note(stream, cuda::name_of(p), 2 * static_cast<double>(p.m * p.n) * static_cast<double>(p.k));
}

std::map<std::string, Profile::Entry> Profile::entries() const {
  stamps_.back().synchronize();
  std::map<std::string, Entry> out;
  for (size_t i = 0; i < names_.size(); ++i) {
    const auto& [name, flops] = names_[i];
    Entry& e = out[flops > 0 ? "cuBLASLt " + name : readable(name.c_str())];
    e.seconds += stamps_[i + 1].seconds_since(stamps_[i]);
    e.flops += flops;
    ++e.times;
  }
  return out;
}

}  // namespace qlora::bench
