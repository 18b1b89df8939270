#include "tools/cuda_bench/parts.h"

#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_choice.h"
#include "kernels/gemm/gemm_cuda.h"
#include "tools/cuda_bench/roofs.h"

namespace qlora::bench {
namespace {

constexpr double kTera = 1e-12, kGiga = 1e-9;

Device card_of(const Bench& b) { return {DeviceKind::cuda, b.device}; }

std::string shape_text(const std::array<int64_t, 2>& s) { return cat(s[0], "x", s[1]); }

// How many sets of operands of so many bytes the cache cannot hold.
size_t sets_of(const Bench& b, double bytes) {
  return 2 + static_cast<size_t>(static_cast<double>(b.sizes.cycled_bytes) / bytes);
}

// Weights of one shape, in turns.
class Weights {
 public:
  Weights(const Bench& b, Exec& e, const std::array<int64_t, 2>& shape) {
    all_.emplace_back(e.stream(), shape[0], shape[1]);
    for (size_t n = sets_of(b, static_cast<double>(all_[0].bytes())); all_.size() < n;)
      all_.emplace_back(e.stream(), shape[0], shape[1]);
  }
  const WeightView& next() const { return all_[turn_++ % all_.size()].view(); }

 private:
  std::vector<DrawnWeight> all_;
  mutable size_t turn_ = 0;
};

enum class Of : uint8_t { flops, bytes };

void measure(Bench& b, Roof& roof, const char* part, const std::string& what, Of of, double work, Exec& e,
             const Planned::Op& op) {
  if (!b.time_for(what)) return;
  const double scale = of == Of::flops ? kTera : kGiga;
  const Figure f = in_turns(b, roof, e, op);
  b.report.add({part, what, f.seconds, scale * work / f.seconds, of == Of::flops ? "TFLOP/s" : "GB/s",
                scale * f.roof, roof.name()});
}

// Holds the choice while it lives.
class Choose {
 public:
  explicit Choose(CudaGemm choice) : former_(cuda_gemm()) { set_cuda_gemm(choice); }
  ~Choose() { set_cuda_gemm(former_); }
  Choose(const Choose&) = delete;

 private:
  CudaGemm former_;
};

struct Products {
  Bench& b;
  MatrixRoof& roof;
  Exec& e;

  void measure(const std::string& what, CudaGemm choice, double flops, const Planned::Op& op) const {
    const Choose choose(choice);
    Planned planned(b.device, op);
    bench::measure(b, roof, "gemm", what, Of::flops, flops, planned.exec(), std::ref(planned));
  }

  // Forward and to the input, by our kernel and by the library, of weights in bf16; then of codes.
  void weight(const std::array<int64_t, 2>& shape, int64_t rows) const {
    const DrawnMatrix x(e.stream(), rows, shape[1]), dy(e.stream(), rows, shape[0]),
        w(e.stream(), shape[0], shape[1]), y(e.stream(), rows, shape[0]), dx(e.stream(), rows, shape[1]);
    WeightView plain;
    plain.format = Format::bf16;
    plain.rows = shape[0];
    plain.cols = shape[1];
    plain.data = w.view().data;
    const Weights codes(b, e, shape);
    const double flops = 2 * static_cast<double>(rows * shape[0]) * static_cast<double>(shape[1]);
    const std::string size = cat(rows, " rows, ", shape_text(shape));
    const auto forward = [&](const WeightView& v) {
      return [&, v](Exec& on) {
        const GemmTerm term{x.input(), v};
        gemm_nt(on, "forward", {&term, 1}, {}, y.view());
      };
    };
    const auto backward = [&](Exec& on) {
      const GemmTerm term{dy.input(), plain};
      gemm_nn(on, "backward", {&term, 1}, {}, dx.view());
    };
    measure("library, nt, " + size, CudaGemm::dequant, flops, forward(plain));
    measure("library, nn, " + size, CudaGemm::dequant, flops, backward);
    measure("own, nt, " + size, CudaGemm::own, flops, forward(plain));
    measure("own, nn, " + size, CudaGemm::own, flops, backward);
    measure("nf4 decoded, library, nt, " + size, CudaGemm::dequant, flops, [&](Exec& on) {
      const GemmTerm term{x.input(), codes.next()};
      gemm_nt(on, "forward", {&term, 1}, {}, y.view());
    });
  }

  // dA and dB.
  void gradient(int64_t rows, int64_t rank, int64_t cols) const {
    const DrawnMatrix narrow(e.stream(), rows, rank), wide(e.stream(), rows, cols),
        da(e.stream(), rank, cols, DType::f32), db(e.stream(), cols, rank, DType::f32);
    const double flops = 2 * static_cast<double>(rows * rank) * static_cast<double>(cols);
    for (const bool own : {false, true}) {
      const CudaGemm choice = own ? CudaGemm::own : CudaGemm::dequant;
      const std::string by = own ? "own, tn, " : "library, tn, ";
      measure(cat(by, rows, " rows, dA ", rank, "x", cols), choice, flops,
              [&](Exec& on) { gemm_tn(on, "dA", narrow.input(), wide.input(), 1, da.view()); });
      measure(cat(by, rows, " rows, dB ", cols, "x", rank), choice, flops,
              [&](Exec& on) { gemm_tn(on, "dB", wide.input(), narrow.input(), 1, db.view()); });
    }
  }
};

struct Heads {
  AttentionShape shape;
  DrawnMatrix q, k, v, o, d_o, dq, dk, dv, lse;
  Heads(const Bench& b, Exec& e, int64_t rows, int head_size)
      : shape{b.sizes.heads, b.sizes.kv_heads, head_size, 1 / std::sqrt(static_cast<float>(head_size)), 0, 0},
        q(e.stream(), rows, int64_t{b.sizes.heads} * head_size),
        k(e.stream(), rows, int64_t{b.sizes.kv_heads} * head_size),
        v(e.stream(), rows, k.view().cols),
        o(e.stream(), rows, q.view().cols),
        d_o(e.stream(), rows, q.view().cols),
        dq(e.stream(), rows, q.view().cols),
        dk(e.stream(), rows, k.view().cols),
        dv(e.stream(), rows, k.view().cols),
        lse(e.stream(), b.sizes.heads, rows, DType::f32) {}
};

}  // namespace

void roofs_part(Bench& b) {
  MatrixRoof matrix(b);
  CopyRoof copy(b);
  const auto add = [&](Roof& roof, double seconds, const char* how, double scale, const char* unit) {
    const double rate = roof.rate(seconds);
    b.report.add({"roofs", cat(roof.name(), ", ", how), 1 / rate, scale * rate, unit, 0, ""});
  };
  for (int i = 0; i < 2; ++i) {
    add(matrix, b.sizes.burst, "a burst", kTera, "TFLOP/s");
    add(matrix, b.sizes.sustained, "sustained", kTera, "TFLOP/s");
    add(copy, b.sizes.burst, "a burst", kGiga, "GB/s");
  }
}

void decode_part(Bench& b) {
  CopyRoof copy(b);
  Exec e(card_of(b), 1, nullptr);
  for (const std::array<int64_t, 2>& shape : b.sizes.weights) {
    const double written = 2 * static_cast<double>(shape[0] * shape[1]);
    const Weights codes(b, e, shape);
    std::vector<cuda::Memory> panels;
    for (size_t n = sets_of(b, written); panels.size() < n;)
      panels.push_back(take(b.device, static_cast<size_t>(written)));
    size_t turn = 0;
    measure(b, copy, "decode", "nf4, double quantization, " + shape_text(shape), Of::bytes,
            codes.next().stored_bytes() + written, e, [&](Exec& on) {
              const cuda::Memory& to = panels[turn++ % panels.size()];
              cuda::decode_weight(on, codes.next(), reinterpret_cast<bf16*>(to.data()), shape[1]);
            });
  }
}

void gemm_part(Bench& b) {
  MatrixRoof roof(b);
  Exec e(card_of(b), 1, nullptr);
  const Products products{b, roof, e};
  for (auto rows = b.sizes.rows.rbegin(); rows != b.sizes.rows.rend(); ++rows)
    for (const std::array<int64_t, 2>& shape : b.sizes.weights) products.weight(shape, *rows);
  for (const std::array<int64_t, 2>& shape : b.sizes.weights)
    products.gradient(b.sizes.rows.back(), b.sizes.large.rank, shape[0]);
}

void fused_part(Bench& b) {
  CopyRoof copy(b);
  Exec e(card_of(b), 1, nullptr);
  for (const std::array<int64_t, 2>& shape : b.sizes.weights) {
    const Weights codes(b, e, shape);
    for (const int64_t rows : b.sizes.few) {
      const DrawnMatrix x(e.stream(), rows, shape[1]), y(e.stream(), rows, shape[0]);
      for (const CudaGemm choice : {CudaGemm::fused, CudaGemm::dequant}) {
        const Choose choose(choice);
        Planned planned(b.device, [&](Exec& on) {
          const GemmTerm term{x.input(), codes.next()};
          gemm_nt(on, "few rows", {&term, 1}, {}, y.view());
        });
        measure(b, copy, "fused",
                cat(choice == CudaGemm::fused ? "fused, " : "decoded, ", rows, " rows, ", shape_text(shape)),
                Of::bytes, codes.next().stored_bytes(), planned.exec(), std::ref(planned));
      }
    }
  }
}

void attention_part(Bench& b) {
  MatrixRoof roof(b);
  Exec e(card_of(b), 1, nullptr);
  for (const int64_t rows : b.sizes.sequences) {
    const cuda::Memory pinned = take(b.device, 2 * sizeof(int32_t), cuda::MemoryKind::pinned);
    auto* const bounds = reinterpret_cast<int32_t*>(pinned.data());
    bounds[0] = 0;
    bounds[1] = static_cast<int32_t>(rows);
    const Segments docs{{bounds, 2}, {bounds, 2}};
    for (const int head_size : b.sizes.head_sizes) {
      const Heads h(b, e, rows, head_size);
      Planned forward(b.device, [&](Exec& on) {
        attention_forward(on, h.shape, docs, h.q.input(), h.k.input(), h.v.input(), h.o.view(), h.lse.view());
      });
      Planned backward(b.device, [&](Exec& on) {
        attention_backward(on, h.shape, docs, h.d_o.input(), h.q.input(), h.k.input(), h.v.input(),
                           h.o.input(), h.lse.input(), h.dq.view(), h.dk.view(), h.dv.view());
      });
      const std::string size = cat("head size ", head_size, ", ", rows, " tokens");
      measure(b, roof, "attention", "forward, " + size, Of::flops, forward.flops(), forward.exec(),
              std::ref(forward));
      measure(b, roof, "attention", "backward, " + size, Of::flops, backward.flops(), backward.exec(),
              std::ref(backward));
    }
  }
}

const std::vector<Part>& parts() {
  static const std::vector<Part> all = {
      {"roofs", "what cuBLASLt multiplies at best, in bf16, and a copy moves", roofs_part},
      {"decode", "NF4 with double quantization to bf16, of a copy's bandwidth", decode_part},
      {"step", "training steps of an 8B-shaped Llama, of the matrix roof; then by kernel", step_part},
      {"small", "training steps of SmolLM2-135M's shape", small_part},
      {"attention", "forward and backward, of the matrix roof", attention_part},
      {"fused", "products of few rows by codes, of a copy's bandwidth", fused_part},
      {"gemm", "products of many rows and dA, dB, ours and the library's, of the matrix roof", gemm_part}};
  return all;
}

}  // namespace qlora::bench
