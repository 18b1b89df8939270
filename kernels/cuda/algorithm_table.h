#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace qlora::cuda {

// An algorithm of cuBLASLt, as the library lets it be kept: cublasLtMatmulAlgo_t's words, good for the
// version that made them.
using Algorithm = std::array<uint64_t, 8>;

// Which algorithm multiplies: by GPU, version of the library and product. As text, a line each, '#' begins a
// remark:
//
//   NVIDIA H200 | 130002 | nt 512x4096x4096 bf16 | 16 hexadecimal digits, eight times
//
// Product: name_of(Matmul) of kernels/cuda/cublaslt.h. What the table does not name gets the library's first
// proposal.
class AlgorithmTable {
 public:
  // Category::input, naming `path` and the line, when the text is no table or names a product twice.
  static AlgorithmTable parse(const std::string& text, const std::string& path);
  static AlgorithmTable load(const std::string& path);

  // Null: not in the table.
  const Algorithm* find(const std::string& gpu, const std::string& library, const std::string& product) const;
  void set(const std::string& gpu, const std::string& library, const std::string& product,
           const Algorithm& a);
  // The lines in one order: what parse() makes of it is this table.
  std::string text() const;
  // Sha-256 of text(), hexadecimal: tables that choose alike have one.
  std::string hash() const;
  bool empty() const { return lines_.empty(); }
  // One line of the text, without its end.
  static std::string line(const std::string& gpu, const std::string& library, const std::string& product,
                          const Algorithm& a);

 private:
  std::map<std::string, Algorithm> lines_;  // by "gpu | library | product"
};

}  // namespace qlora::cuda
