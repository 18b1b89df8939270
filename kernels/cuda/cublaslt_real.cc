#include <dlfcn.h>

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <source_location>
#include <type_traits>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/observer.h"
#include "kernels/gemm/gemm_choice.h"
#include "memory/cuda/current.h"
#include "memory/cuda/host.h"

namespace qlora::cuda {
namespace {

constexpr const char* kFile = "libcublasLt.so.13";

static_assert(sizeof(lt::Algo) == sizeof(Algorithm));

#if __has_include(<cublasLt.h>)
static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == sizeof(lt::Proposal) &&
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) ==
                  offsetof(lt::Proposal, workspace_bytes) &&
              offsetof(cublasLtMatmulHeuristicResult_t, state) == offsetof(lt::Proposal, state));
static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(lt::Algo));
static_assert(CUBLAS_STATUS_SUCCESS == lt::kSuccess && CUBLAS_STATUS_NOT_SUPPORTED == lt::kNotSupported);
static_assert(CUBLAS_COMPUTE_32F == lt::kCompute32F && CUDA_R_32F == lt::kFloat && CUDA_R_16BF == lt::kBf16);
static_assert(CUBLAS_OP_N == lt::kAsItLies && CUBLAS_OP_T == lt::kTransposed);
static_assert(CUBLASLT_MATMUL_DESC_TRANSA == lt::kFirstOp && CUBLASLT_MATMUL_DESC_TRANSB == lt::kSecondOp);
static_assert(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES == lt::kMaxWorkspace &&
              CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK == lt::kReductionSchemes &&
              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES == lt::kAlignments[0] &&
              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES == lt::kAlignments[3]);
static_assert(CUBLASLT_REDUCTION_SCHEME_NONE == lt::kNoReduction &&
              CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE == lt::kReductionInComputeType);
static_assert(CUBLASLT_ALGO_CONFIG_ID == lt::kAlgoId && CUBLASLT_ALGO_CONFIG_TILE_ID == lt::kTileId &&
              CUBLASLT_ALGO_CONFIG_SPLITK_NUM == lt::kSplits &&
              CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME == lt::kReductionScheme &&
              CUBLASLT_ALGO_CONFIG_STAGES_ID == lt::kStagesId);

// A function's parameters are as many, as large, and pointers where the header's are.
template <class A, class B>
constexpr bool kAlike = sizeof(A) == sizeof(B) && (std::is_pointer_v<A> == std::is_pointer_v<B>);
template <class F, class G>
constexpr bool kSameCall = false;
template <class R, class S, class... A, class... B>
requires(sizeof...(A) == sizeof...(B)) constexpr bool kSameCall<R (*)(A...), S (*)(B...)> = kAlike<R, S> &&
                                                                                            (kAlike<A, B> &&
                                                                                             ...);
#define QLORA_COMPARE(name, result, parameters) \
  static_assert(kSameCall<decltype(&::name), decltype(lt::Functions::name)>);
QLORA_CUBLASLT(QLORA_COMPARE)
#undef QLORA_COMPARE
#endif

void* open_library() {
  const char* const named = std::getenv("QLORA_CUBLASLT");
  const char* const file = named != nullptr && *named != 0 ? named : kFile;
  void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    fail(Category::io, file, ": not found (", dlerror(),
         "); tools/setup --cuda brings it, or pip install 'nvidia-cublas==13.*': then name the file in "
         "QLORA_CUBLASLT; QLORA_GEMM=own runs without it, more slowly");
  return library;
}

lt::Functions functions_of(void* library) {
  lt::Functions out;
  const auto get = [&](const char* name, auto& f) {
    f = reinterpret_cast<std::remove_reference_t<decltype(f)>>(dlsym(library, name));
    if (f == nullptr)
      fail(Category::io, kFile, ": has no ", name, "; install the library of CUDA 13.0 or later");
  };
#define QLORA_GET(name, result, parameters) get(#name, out.name);
  QLORA_CUBLASLT(QLORA_GET)
#undef QLORA_GET
  return out;
}

// Of the library, which stays open.
const lt::Functions& api() {
  static const lt::Functions functions = functions_of(open_library());
  return functions;
}

void verify(lt::Status status, const char* call, const std::string& what = {},
            std::source_location place = std::source_location::current()) {
  if (status == lt::kSuccess) [[likely]]
    return;
  fail(Category::io, place.file_name(), ":", place.line(), ": ", call, what.empty() ? "" : " of ", what, ": ",
       api().cublasLtGetStatusString(status),
       "; check the card and its driver (nvidia-smi); QLORA_GEMM=own runs ", "without cuBLASLt");
}

// Descriptions, which the library makes and takes back.
template <auto kDestroy>
struct Free {
  void operator()(void* p) const { (api().*kDestroy)(p); }
};
using Product = std::unique_ptr<void, Free<&lt::Functions::cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<void, Free<&lt::Functions::cublasLtMatrixLayoutDestroy>>;
using Preference = std::unique_ptr<void, Free<&lt::Functions::cublasLtMatmulPreferenceDestroy>>;

// The library's matrices lie by columns: what lies as [rows, cols] here is its [cols, rows].
Layout layout(DType type, int64_t rows, int64_t cols, int64_t stride) {
  lt::Layout p = nullptr;
  verify(api().cublasLtMatrixLayoutCreate(&p, type == DType::bf16 ? lt::kBf16 : lt::kFloat,
                                          static_cast<uint64_t>(cols), static_cast<uint64_t>(rows), stride),
         "cublasLtMatrixLayoutCreate");
  return Layout(p);
}

Product product(const Matmul& m) {
  lt::Product p = nullptr;
  verify(api().cublasLtMatmulDescCreate(&p, lt::kCompute32F, lt::kFloat), "cublasLtMatmulDescCreate");
  Product out(p);
  const auto set = [&](int name, int32_t value) {
    verify(api().cublasLtMatmulDescSetAttribute(p, name, &value, sizeof value),
           "cublasLtMatmulDescSetAttribute");
  };
  // Its product is d's transpose: the first operand is b, the second a.
  set(lt::kFirstOp, m.b_by_k ? lt::kAsItLies : lt::kTransposed);
  set(lt::kSecondOp, m.a_by_k ? lt::kTransposed : lt::kAsItLies);
  return out;
}

// A constant workspace, operands on 16 bytes and no more, and no sum kept in bf16 or added in any order but
// one.
Preference preference() {
  lt::Preference p = nullptr;
  verify(api().cublasLtMatmulPreferenceCreate(&p), "cublasLtMatmulPreferenceCreate");
  Preference out(p);
  const auto set = [&](int name, auto value) {
    verify(api().cublasLtMatmulPreferenceSetAttribute(p, name, &value, sizeof value),
           "cublasLtMatmulPreferenceSetAttribute");
  };
  set(lt::kMaxWorkspace, uint64_t{kCublasLtWorkspace});
  set(lt::kReductionSchemes, lt::kNoReduction | lt::kReductionInComputeType);
  for (const int name : lt::kAlignments) set(name, uint32_t{16});
  return out;
}

// All that a shape's calls share.
struct Prepared {
  Product what;
  Layout a, b, c, d;
  lt::Algo algorithm{};

  Prepared() = default;
  explicit Prepared(const Matmul& m)
      : what(product(m)),
        a(layout(DType::bf16, m.a_by_k ? m.k : m.m, m.a_by_k ? m.m : m.k, m.a_stride)),
        b(layout(DType::bf16, m.b_by_k ? m.k : m.n, m.b_by_k ? m.n : m.k, m.b_stride)),
        c(layout(m.d.dtype, m.m, m.n, m.beta == 0 ? m.d.stride : m.c.stride)),
        d(layout(m.d.dtype, m.m, m.n, m.d.stride)) {}
};

std::string config_of(const lt::Algo& a) {
  std::string out;
  const auto add = [&](const char* name, int attribute) {
    uint32_t value = 0;
    size_t written = 0;
    if (api().cublasLtMatmulAlgoConfigGetAttribute(&a, attribute, &value, sizeof value, &written) ==
        lt::kSuccess)
      out += cat(", ", name, " ", value);
  };
  add("algorithm", lt::kAlgoId);
  add("tile", lt::kTileId);
  add("stages", lt::kStagesId);
  add("split", lt::kSplits);
  add("reduction", lt::kReductionScheme);
  return out;
}

Algorithm words_of(const lt::Algo& a) {
  Algorithm words;
  std::copy_n(a.data, words.size(), words.begin());
  return words;
}

// One device's handle and what was prepared for its products.
class Library {
 public:
  explicit Library(int device) : version_(cat(api().cublasLtGetVersion())), gpu_(device_info(device).name) {
    verify(api().cublasLtCreate(&handle_), "cublasLtCreate");  // for the process's life
  }

  const std::string& version() const { return version_; }
  void matmul(Exec& e, const Matmul& m, void* workspace) { run(e, m, prepared(m), workspace); }
  void run(Exec& e, const Matmul& m, const Prepared& p, void* workspace) const {
    const void* c = m.beta == 0 ? m.d.data : m.c.data;
    verify(api().cublasLtMatmul(handle_, p.what.get(), &m.alpha, m.b, p.b.get(), m.a, p.a.get(), &m.beta, c,
                                p.c.get(), m.d.data, p.d.get(), &p.algorithm, workspace, kCublasLtWorkspace,
                                e.stream().handle()),
           "cublasLtMatmul", name_of(m));
    observe_matmul(e.stream(), m);
  }

  // p gets it. Category::input when the library refuses it. Returns its workspace's bytes.
  size_t choose(const Matmul& m, const Algorithm& words, Prepared& p) const {
    std::copy(words.begin(), words.end(), p.algorithm.data);
    lt::Proposal result{};
    const lt::Status status = api().cublasLtMatmulAlgoCheck(handle_, p.what.get(), p.b.get(), p.a.get(),
                                                            p.c.get(), p.d.get(), &p.algorithm, &result);
    if (status != lt::kSuccess || result.workspace_bytes > kCublasLtWorkspace)
      fail(Category::input, "table of algorithms: ", name_of(m), " on ", gpu_, " with cuBLASLt ", version_,
           ": the library refuses its algorithm; make the table again or unset QLORA_GEMM_TABLE");
    return result.workspace_bytes;
  }

  std::vector<lt::Proposal> propose(const Matmul& m, const Prepared& p, int most) const {
    std::vector<lt::Proposal> out(static_cast<size_t>(most));
    int found = 0;
    verify(api().cublasLtMatmulAlgoGetHeuristic(handle_, p.what.get(), p.b.get(), p.a.get(), p.c.get(),
                                                p.d.get(), preference().get(), most, out.data(), &found),
           "cublasLtMatmulAlgoGetHeuristic", name_of(m));
    out.resize(static_cast<size_t>(found));
    std::erase_if(out, [](const lt::Proposal& o) { return o.state != lt::kSuccess; });
    if (out.empty()) verify(lt::kNotSupported, "cublasLtMatmulAlgoGetHeuristic", name_of(m));
    return out;
  }

  const std::string& log() const { return log_; }

 private:
  using Key = std::vector<int64_t>;
  static Key key_of(const Matmul& m) {
    const bool adds = m.beta != 0;
    return {m.m,
            m.n,
            m.k,
            m.a_by_k,
            m.b_by_k,
            m.a_stride,
            m.b_stride,
            m.d.stride,
            m.d.dtype == DType::bf16,
            adds,
            adds ? m.c.stride : 0};
  }

  const Prepared& prepared(const Matmul& m) {
    const auto [at, is_new] = prepared_.try_emplace(key_of(m));
    if (is_new) {
      try {
        prepare(m, at->second);
      } catch (...) {
        prepared_.erase(at);
        throw;
      }
    }
    return at->second;
  }

  void prepare(const Matmul& m, Prepared& p) {
    p = Prepared(m);
    const std::string name = name_of(m);
    const Algorithm* const named = gemm_algorithms().find(gpu_, version_, name);
    size_t bytes = 0;
    if (named != nullptr) {
      bytes = choose(m, *named, p);
    } else {
      const lt::Proposal first = propose(m, p, 1).front();
      p.algorithm = first.algo;
      bytes = first.workspace_bytes;
    }
    log_ += cat(AlgorithmTable::line(gpu_, version_, name, words_of(p.algorithm)), "  # ",
                named != nullptr ? "from the table" : "the library's first", config_of(p.algorithm),
                ", workspace ", bytes, "\n");
  }

  std::string version_, gpu_, log_;
  lt::Handle handle_ = nullptr;
  std::map<Key, Prepared> prepared_;
};

std::mutex mutex;
std::map<int, Library>& libraries() {
  static auto& all = *new std::map<int, Library>;  // outlives whatever the process ends in
  return all;
}
Library& library(int device) {
  make_current(device);
  return libraries().try_emplace(device, device).first->second;
}

}  // namespace

void matmul(Exec& e, const Matmul& m, void* workspace) {
  check_matmul(m, workspace);
  const std::lock_guard lock(mutex);
  library(e.stream().device()).matmul(e, m, workspace);
}

void start_matmul(int device) {
  const std::lock_guard lock(mutex);
  library(device);
}

std::string matmul_library(int device) {
  const std::lock_guard lock(mutex);
  return library(device).version();
}

std::vector<Algorithm> propose(int device, const Matmul& m, int most) {
  const std::lock_guard lock(mutex);
  std::vector<Algorithm> out;
  for (const lt::Proposal& p : library(device).propose(m, Prepared(m), most)) out.push_back(words_of(p.algo));
  return out;
}

struct ChosenMatmul::State {
  Matmul m;
  const Library* library;
  Prepared prepared;
};
ChosenMatmul::ChosenMatmul(int device, const Matmul& m, const Algorithm& algorithm) {
  const std::lock_guard lock(mutex);
  state_.reset(new State{m, &library(device), Prepared(m)});
  state_->library->choose(m, algorithm, state_->prepared);
}
ChosenMatmul::~ChosenMatmul() = default;
void ChosenMatmul::run(Exec& e, void* workspace) const {
  check_matmul(state_->m, workspace);
  make_current(e.stream().device());
  state_->library->run(e, state_->m, state_->prepared, workspace);
}

std::string matmul_log() {
  const std::lock_guard lock(mutex);
  std::string out;
  for (const auto& [device, library] : libraries()) out += library.log();
  return out;
}

}  // namespace qlora::cuda
