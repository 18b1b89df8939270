#include "kernels/gemm/gemm_choice.h"

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "memory/error.h"

namespace qlora {
namespace {

std::optional<CudaGemm>& chosen() {
  static std::optional<CudaGemm> choice;
  return choice;
}

std::optional<bool>& ahead_in_force() {
  static std::optional<bool> ahead;
  return ahead;
}

std::optional<cuda::AlgorithmTable>& table_in_force() {
  static std::optional<cuda::AlgorithmTable> table;
  return table;
}

}  // namespace

CudaGemm cuda_gemm_of(const std::string& name) {
  if (name == "fused") return CudaGemm::fused;
  if (name == "dequant") return CudaGemm::dequant;
  if (name == "own") return CudaGemm::own;
  fail(Category::usage, "QLORA_GEMM=", name, ": unknown; use fused, dequant or own, or unset it");
}

CudaGemm cuda_gemm() {
  if (!chosen()) {
    const char* name = std::getenv("QLORA_GEMM");
    chosen() = name != nullptr && *name != 0 ? cuda_gemm_of(name) : CudaGemm::by_rows;
  }
  return *chosen();
}

void set_cuda_gemm(CudaGemm choice) { chosen() = choice; }

bool decodes_ahead_of(const std::string& name) {
  if (name == "ahead") return true;
  if (name == "inline") return false;
  fail(Category::usage, "QLORA_DECODE=", name, ": unknown; use ahead or inline, or unset it");
}

bool decodes_ahead() {
  if (!ahead_in_force()) {
    const char* name = std::getenv("QLORA_DECODE");
    ahead_in_force() = name == nullptr || *name == 0 || decodes_ahead_of(name);
  }
  return *ahead_in_force();
}

void set_decodes_ahead(bool on) { ahead_in_force() = on; }

const cuda::AlgorithmTable& gemm_algorithms() {
  if (!table_in_force()) {
    const char* path = std::getenv("QLORA_GEMM_TABLE");
    table_in_force() =
        path != nullptr && *path != 0 ? cuda::AlgorithmTable::load(path) : cuda::AlgorithmTable();
  }
  return *table_in_force();
}

void set_gemm_algorithms(cuda::AlgorithmTable table) { table_in_force() = std::move(table); }

}  // namespace qlora
