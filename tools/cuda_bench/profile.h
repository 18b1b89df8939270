#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/observer.h"
#include "memory/cuda/stamp.h"

namespace qlora::bench {

// Where the time of a stream goes, while it lives: each kernel's, and each of the library's products by
// shape, from the end of what was put on the stream before it. So what comes between (copies, a wait for the
// host) counts as the next one's, and noting the time costs some, too.
class Profile : public cuda::Observer {
 public:
  explicit Profile(cuda::Stream& stream);
  ~Profile() override;
  Profile(const Profile&) = delete;
  void launched(cuda::Stream& stream, const char* kernel) override;
  void multiplied(cuda::Stream& stream, const cuda::Matmul& product) override;

  struct Entry {
    double seconds = 0, flops = 0;  // flops: of products alone
    int64_t times = 0;
  };
  // By name; waits for the stream.
  std::map<std::string, Entry> entries() const;

 private:
  void note(cuda::Stream& stream, const std::string& name, double flops);
  cuda::Stream* stream_;  // what others do is not looked at
  std::vector<cuda::Stamp> stamps_;
  std::vector<std::pair<std::string, double>> names_;  // of all but the first, with their flops
};

}  // namespace qlora::bench
