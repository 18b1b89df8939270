#include "kernels/attention/attention.h"

#include <utility>

#include "kernels/attention/attention_args.h"
#include "kernels/common/rows.h"

#define QLORA_BODY "kernels/attention/attention_cpu.inl"
#include "kernels/common/for_each_isa.h"
#define QLORA_AVX512BF16_BODY "kernels/attention/attention_amx.inl"
#include "kernels/common/for_avx512bf16.h"
#define QLORA_AMX_BODY "kernels/attention/attention_amx.inl"
#include "kernels/common/for_amx.h"

namespace qlora {
namespace {

using attention::Args;
using attention::kTile;
using attention::Rows;

// What computes the tasks, and one worker's memory in floats.
struct Body {
  using Task = void (*)(const Args&, const Rows&, int64_t first, float* work);
  Task forward, backward_keys, backward_queries;
  int64_t forward_floats, backward_floats;
};

// Products of bf16 where the ISA has them and the operands are: fp32 keeps to the vectors.
Body body_of(const Args& a) {
#if defined(__x86_64__)
  if (multiplies_bf16(active_isa()) && a.q.dtype == DType::bf16) {
    const int64_t floats = attention::amx_workspace(a.dim());
    return {QLORA_PICK_BF16(attention_forward_task), QLORA_PICK_BF16(attention_backward_keys_task),
            QLORA_PICK_BF16(attention_backward_queries_task), floats, floats};
  }
#endif
  return {QLORA_PICK(attention_forward_task), QLORA_PICK(attention_backward_keys_task),
          QLORA_PICK(attention_backward_queries_task), attention::forward_workspace(a.padded_dim()),
          attention::backward_workspace(a.padded_dim())};
}

// A worker's memory each; a CUDA device has its tiles on chip.
Buffer tiles(Exec& e, int64_t floats) {
  if (e.on_cuda()) return {};
  return e.allocate(Region::workspace, "attention tiles",
                    sizeof(float) * static_cast<size_t>(floats) * static_cast<size_t>(e.threads()));
}

int64_t blocks_of(int64_t rows) { return (rows + kTile - 1) / kTile; }

void check_shapes(const AttentionShape& s, const Segments& docs, const ConstMat& q, const ConstMat& k,
                  const ConstMat& v) {
  check(s.kv_heads > 0 && s.q_heads > 0 && s.q_heads % s.kv_heads == 0, "attention: ", s.q_heads,
        " query heads over ", s.kv_heads);
  check(s.head_dim > 0 && s.head_dim % 8 == 0 && s.head_dim <= 256, "attention: head_dim ", s.head_dim);
  check(is_activation(q.dtype) && k.dtype == q.dtype && v.dtype == q.dtype,
        "attention: q, k, v share a type");
  check(q.cols == int64_t{s.q_heads} * s.head_dim && k.cols == int64_t{s.kv_heads} * s.head_dim &&
            same_shape(k, v),
        "attention: q, k, v do not fit the heads");
  check(docs.q.size() == docs.k.size() && !docs.q.empty(), "attention: segments");
}

// What the bounds must be, read only where they exist: not in rehearsal.
void check_segments(const Segments& docs, int64_t q_rows, int64_t k_rows) {
  check(docs.q.front() == 0 && docs.k.front() == 0 && docs.q.back() == q_rows && docs.k.back() == k_rows,
        "attention: segments do not span the rows");
  for (size_t d = 0; d + 1 < docs.q.size(); ++d) {
    const int64_t queries = docs.q[d + 1] - docs.q[d], keys = docs.k[d + 1] - docs.k[d];
    check(queries >= 0 && keys >= queries, "attention: document ", d, " has ", queries, " queries and ", keys,
          " keys");
  }
}

// Pairs of query and key, over all documents were they of one length.
double pairs(const AttentionShape& s, const Segments& docs, int64_t q_rows, int64_t k_rows) {
  const double count = std::max<double>(1, static_cast<double>(docs.q.size()) - 1);
  const double queries = q_rows / count, keys = k_rows / count;
  const double seen = keys - (queries - 1) / 2;
  return q_rows * (s.window > 0 ? std::min<double>(seen, s.window) : seen);
}

// body(rows, first row of the block, worker) for every document, head and block of kTile rows, heaviest
// blocks first. by_keys: blocks of keys and key heads, else of queries and query heads.
template <class Body>
void for_each_block(const Exec& e, const AttentionShape& s, const Segments& docs, bool by_keys,
                    const Body& body) {
  const std::span<const int32_t> bounds = by_keys ? docs.k : docs.q;
  const int64_t heads = by_keys ? s.kv_heads : s.q_heads;
  int64_t tasks = 0;
  for (size_t d = 0; d + 1 < bounds.size(); ++d) tasks += blocks_of(bounds[d + 1] - bounds[d]) * heads;
  e.parallel(tasks, [&](int64_t task, int worker) {
    size_t d = 0;
    int64_t blocks = blocks_of(bounds[1] - bounds[0]);
    for (; task >= blocks * heads; blocks = blocks_of(bounds[d + 1] - bounds[d])) {
      task -= blocks * heads;
      ++d;
    }
    const int head = static_cast<int>(task % heads), group = s.q_heads / s.kv_heads;
    const int64_t block = by_keys ? task / heads : blocks - 1 - task / heads;
    const Rows rows{docs.q[d],
                    docs.q[d + 1] - docs.q[d],
                    docs.k[d],
                    docs.k[d + 1] - docs.k[d],
                    by_keys ? head * group : head,
                    by_keys ? head : head / group};
    body(rows, block * kTile, worker);
  });
}

}  // namespace

void attention_forward(Exec& e, const AttentionShape& s, const Segments& docs, const ConstMat& q,
                       const ConstMat& k, const ConstMat& v, const Mat& o, const Mat& lse) {
  check_shapes(s, docs, q, k, v);
  check(same_shape(q, o) && o.dtype == q.dtype, "attention: o is not like q");
  check(!lse || (lse.dtype == DType::f32 && lse.rows == s.q_heads && lse.cols == q.rows),
        "attention: lse is not fp32 [q_heads, rows]");
  Args a{s, q, k, v, {}, {}, nullptr, lse.stride, nullptr, o, {}, {}, {}, static_cast<float*>(lse.data)};
  const Body body = body_of(a);
  const int64_t each = body.forward_floats;
  const Buffer work = tiles(e, each);
  if (!e.op("attention", 4. * s.q_heads * s.head_dim * pairs(s, docs, q.rows, k.rows),
            q.bytes() + k.bytes() + v.bytes(), o.bytes() + (lse ? lse.bytes() : 0)))
    return;
  check_segments(docs, q.rows, k.rows);
  if (e.on_cuda()) return attention::forward_cuda(e, a, docs);
  for_each_block(e, s, docs, false, [&](const Rows& rows, int64_t first, int worker) {
    body.forward(a, rows, first, work.as<float>() + worker * each);
  });
}

void attention_backward(Exec& e, const AttentionShape& s, const Segments& docs, const ConstMat& d_o,
                        const ConstMat& q, const ConstMat& k, const ConstMat& v, const ConstMat& o,
                        const ConstMat& lse, const Mat& dq, const Mat& dk, const Mat& dv) {
  check_shapes(s, docs, q, k, v);
  for (const ConstMat& m : {d_o, o, ConstMat(dq)})
    check(same_shape(q, m) && m.dtype == q.dtype, "attention_backward: d_o, o and dq are not like q");
  for (const Mat& m : {dk, dv})
    check(same_shape(k, m) && m.dtype == q.dtype, "attention_backward: dk and dv are not like k");
  check(lse.dtype == DType::f32 && lse.rows == s.q_heads && lse.cols == q.rows,
        "attention_backward: lse is not fp32 [q_heads, rows]");
  Args a{s,          q,       k,  v,  o,  d_o, static_cast<const float*>(lse.data),
         lse.stride, nullptr, {}, dq, dk, dv,  nullptr};
  const Body body = body_of(a);
  const int64_t each = body.backward_floats;
  const Buffer delta = e.allocate(Region::workspace, "attention delta", 4 * s.q_heads * q.rows);
  const Buffer work = tiles(e, each);
  if (!e.op("attention_backward", 10. * s.q_heads * s.head_dim * pairs(s, docs, q.rows, k.rows),
            2 * (q.bytes() + o.bytes() + k.bytes() + v.bytes()), dq.bytes() + dk.bytes() + dv.bytes()))
    return;
  check_segments(docs, q.rows, k.rows);
  a.delta = delta.as<float>();
  if (e.on_cuda()) return attention::backward_cuda(e, a, docs);
  const auto deltas = QLORA_PICK(attention_delta_rows);
  parallel_ranges(e, q.rows, rows_per_task(q.cols), [&](int64_t i, int64_t end) { deltas(a, i, end); });
  for_each_block(e, s, docs, true, [&](const Rows& rows, int64_t first, int worker) {
    body.backward_keys(a, rows, first, work.as<float>() + worker * each);
  });
  for_each_block(e, s, docs, false, [&](const Rows& rows, int64_t first, int worker) {
    body.backward_queries(a, rows, first, work.as<float>() + worker * each);
  });
}

}  // namespace qlora
