#include "kernels/attention/attention.h"

#include <utility>

#include "kernels/attention/attention_args.h"
#include "kernels/attention/attention_bf16_memory.h"
#include "kernels/attention/attention_vector_memory.h"
#include "kernels/common/rows.h"

#define QLORA_BODY "kernels/attention/attention_cpu.inl"
#include "kernels/common/for_each_isa.h"
#define QLORA_AVX512BF16_BODY "kernels/attention/attention_bf16.inl"
#include "kernels/common/for_avx512bf16.h"
#define QLORA_AMX_BODY "kernels/attention/attention_bf16.inl"
#include "kernels/common/for_amx.h"

namespace qlora {
namespace {

using attention::Args;
using attention::kTile;
using attention::Rows;

// Products of bf16 where the ISA has them and the operands are: fp32 keeps to the vectors.
bool on_tiles(const Exec& e, const ConstMat& q) {
  return !e.on_cuda() && multiplies_bf16(active_isa()) && q.dtype == DType::bf16;
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

// Whose blocks of kTile rows: a query head's queries, all queries of a key head's group, a key head's keys.
enum class Blocks { queries, groups, keys };

// body(rows, first row of the block, worker) for every document, head and block of kTile rows, heaviest
// blocks first: queries' last ones, keys' first ones.
template <class Body>
void for_each_block(const Exec& e, const AttentionShape& s, const Segments& docs, Blocks of,
                    const Body& body) {
  const std::span<const int32_t> bounds = of == Blocks::keys ? docs.k : docs.q;
  const int64_t heads = of == Blocks::queries ? s.q_heads : s.kv_heads;
  int64_t tasks = 0;
  for (size_t d = 0; d + 1 < bounds.size(); ++d) tasks += blocks_of(bounds[d + 1] - bounds[d]) * heads;
  e.parallel(tasks, [&](int64_t task, int worker) {
    size_t d = 0;
    int64_t blocks = blocks_of(bounds[1] - bounds[0]), before = 0;
    for (; task >= blocks * heads; blocks = blocks_of(bounds[d + 1] - bounds[d])) {
      task -= blocks * heads;
      if (const int64_t keys = docs.k[d + 1] - docs.k[d]; keys > kTile) before += blocks_of(keys);
      ++d;
    }
    const int head = static_cast<int>(task % heads), group = s.q_heads / s.kv_heads;
    const int64_t block = of == Blocks::keys ? task / heads : blocks - 1 - task / heads;
    const Rows rows{docs.q[d],
                    docs.q[d + 1] - docs.q[d],
                    docs.k[d],
                    docs.k[d + 1] - docs.k[d],
                    of == Blocks::queries ? head : head * group,
                    of == Blocks::queries ? head / group : head,
                    before};
    body(rows, block * kTile, worker);
  });
}

// The bodies of a pass, each worker's memory and the blocks of keys that tasks share. A CUDA device has its
// tiles on chip.
struct Tasks {
  Buffer work, keys;
  int64_t each = 0;  // bytes
  Tasks(Exec& e, const Args& a, const Segments& docs, int64_t work_bytes, int64_t key_bytes)
      : each(work_bytes) {
    if (e.on_cuda()) return;
    work = e.allocate(Region::workspace, "attention tiles",
                      static_cast<size_t>(each) * static_cast<size_t>(e.threads()));
    const int64_t documents = static_cast<int64_t>(docs.k.size()) - 1;
    if (key_bytes > 0)
      keys = e.allocate(
          Region::workspace, "attention keys",
          static_cast<size_t>(attention::shared_blocks(a.k.rows, documents) * a.shape.kv_heads * key_bytes));
  }
  using Task = void (*)(const Args&, const Rows&, int64_t first, char* work);
  void run(Exec& e, const Args& a, const Segments& docs, Blocks of, Task task) const {
    for_each_block(e, a.shape, docs, of, [&](const Rows& rows, int64_t first, int worker) {
      // Those of a document of one block are prepared where they are used, if anywhere.
      if (of == Blocks::keys && rows.k_count <= kTile && rows.q_count > 0) return;
      task(a, rows, first, work.as<char>() + worker * each);
    });
  }
};

}  // namespace

void attention_forward(Exec& e, const AttentionShape& s, const Segments& docs, const ConstMat& q,
                       const ConstMat& k, const ConstMat& v, const Mat& o, const Mat& lse) {
  check_shapes(s, docs, q, k, v);
  check(same_shape(q, o) && o.dtype == q.dtype, "attention: o is not like q");
  check(!lse || (lse.dtype == DType::f32 && lse.rows == s.q_heads && lse.cols == q.rows),
        "attention: lse is not fp32 [q_heads, rows]");
  Args a{s, q, k, v, {}, {}, nullptr, lse.stride, nullptr, o, {}, {}, {}, static_cast<float*>(lse.data)};
  const auto begins = [&] {
    if (!e.op("attention", 4. * s.q_heads * s.head_dim * pairs(s, docs, q.rows, k.rows),
              q.bytes() + k.bytes() + v.bytes(), o.bytes() + (lse ? lse.bytes() : 0)))
      return false;
    check_segments(docs, q.rows, k.rows);
    return true;
  };
#if defined(__x86_64__)
  if (on_tiles(e, q)) {
    const Tasks tiles(e, a, docs, attention::ForwardMemory(a).bytes,
                      attention::KeyBlocks(a.padded_dim(), false).bytes);
    if (!begins()) return;
    a.shared = tiles.keys.as<char>();
    tiles.run(e, a, docs, Blocks::keys, QLORA_PICK_BF16(attention_prepare_values));
    return tiles.run(e, a, docs, Blocks::queries, QLORA_PICK_BF16(attention_forward_task));
  }
#endif
  const Tasks vectors(e, a, docs, attention::VectorForward(a).bytes, 0);
  if (!begins()) return;
  if (e.on_cuda()) return attention::forward_cuda(e, a, docs);
  vectors.run(e, a, docs, Blocks::groups, QLORA_PICK(attention_forward_task));
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
  const auto begins = [&] {
    if (!e.op("attention_backward", 10. * s.q_heads * s.head_dim * pairs(s, docs, q.rows, k.rows),
              2 * (q.bytes() + o.bytes() + k.bytes() + v.bytes()), dq.bytes() + dk.bytes() + dv.bytes()))
      return false;
    check_segments(docs, q.rows, k.rows);
    return true;
  };
#if defined(__x86_64__)
  if (on_tiles(e, q)) {
    const Tasks tiles(e, a, docs, attention::BackwardMemory(a).bytes,
                      attention::KeyBlocks(a.padded_dim(), true).bytes);
    if (!begins()) return;
    a.shared = tiles.keys.as<char>();
    tiles.run(e, a, docs, Blocks::keys, QLORA_PICK_BF16(attention_prepare_keys));
    tiles.run(e, a, docs, Blocks::groups, QLORA_PICK_BF16(attention_backward_task));
    return tiles.run(e, a, docs, Blocks::keys, QLORA_PICK_BF16(attention_finish_keys));
  }
#endif
  if (e.on_cuda()) {
    const Buffer delta = e.allocate(Region::workspace, "attention delta", 4 * s.q_heads * q.rows);
    if (!begins()) return;
    a.delta = delta.as<float>();
    return attention::backward_cuda(e, a, docs);
  }
  const Tasks vectors(e, a, docs, attention::VectorBackward(a).bytes,
                      attention::KeyBlocks(a.padded_dim(), true, false).bytes);
  if (!begins()) return;
  a.shared = vectors.keys.as<char>();
  vectors.run(e, a, docs, Blocks::keys, QLORA_PICK(attention_prepare_keys));
  vectors.run(e, a, docs, Blocks::groups, QLORA_PICK(attention_backward_task));
  vectors.run(e, a, docs, Blocks::keys, QLORA_PICK(attention_finish_keys));
}

}  // namespace qlora
