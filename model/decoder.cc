#include "model/decoder.h"

#include <algorithm>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_few.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rows/rows.h"

namespace qlora {
namespace {

// More rows than this amortize one decode of the head no better.
constexpr int64_t kMaxChunkRows = 512;

int64_t chunks_of(int64_t rows, int64_t chunk) { return (rows + chunk - 1) / chunk; }
double whole_chunks(int64_t rows, int64_t chunk) {
  return static_cast<double>(rows) / static_cast<double>(std::min(rows, chunk));
}

void keep_rows(std::vector<std::vector<float>>* hidden, const ConstMat& x) {
  if (hidden == nullptr) return;
  std::vector<float>& out = hidden->emplace_back(static_cast<size_t>(x.rows * x.cols));
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.cols; ++c)
      out[static_cast<size_t>(r * x.cols + c)] =
          x.dtype == DType::f32 ? x.row<float>(r)[c] : static_cast<float>(x.row<bf16>(r)[c]);
}

}  // namespace

LossSum sum_of(std::span<const float> losses, std::span<const uint8_t> hits) {
  LossSum sum;
  sum.tokens = static_cast<int64_t>(losses.size());
  for (const float l : losses) sum.loss += l;
  for (const uint8_t h : hits) sum.hits += h;
  return sum;
}

Decoder::Decoder(std::shared_ptr<const Model> model, Numerics numerics, const BatchLimits& limits)
    : model_(std::move(model)),
      numerics_(numerics),
      limits_(limits),
      rope_(model_->rope_tables(limits.longest)),
      saved_(static_cast<size_t>(model_->block_count())) {}

BlockContext Decoder::context(int block, const BlockWeights& weights, const AdapterView& a) const {
  static const AdapterLayout none;
  BlockContext c = block_context(model_->desc(), block, weights, rope_.view(), numerics_,
                                 a.layout == nullptr ? none : *a.layout, a.params, a.grads);
  for (LinearGroup& g : c.group) g.ahead = ahead_ != nullptr && ahead_->passing() ? ahead_.get() : nullptr;
  return c;
}

void Decoder::set_device(const DeviceWeights& weights, cuda::Stream& stream) {
  device_ = &weights;
  rope_.move_to(stream);
  if (ahead_ != nullptr) ahead_->start({DeviceKind::cuda, stream.device()});
}

BlockBatch Decoder::block_batch(const Exec& e, const TokenBatch& b, const DropoutKey& dropout) const {
  if (!e.rehearsing()) rope_.fill();
  BlockBatch batch;
  batch.tokens = static_cast<int64_t>(b.ids.size());
  batch.tile_rows = numerics_.row_tile;
  batch.tiles = chunks_of(limits_.tokens, batch.tile_rows);
  batch.whole_tiles = whole_chunks(limits_.tokens, batch.tile_rows);
  batch.docs = {b.cu_seqlens, b.cu_seqlens};
  batch.positions = b.positions;
  batch.drop = {dropout, b.places};
  return batch;
}

std::array<size_t, kSavedGroups.size()> Decoder::page_bytes(const AdapterLayout& adapter) const {
  std::array<size_t, kSavedGroups.size()> most{};
  for (int b = 0; b < model_->block_count(); ++b) {
    const BlockContext c = context(b, model_->block(b), {&adapter, nullptr, nullptr});
    for (size_t g = 0; g < most.size(); ++g) most[g] = std::max(most[g], group_bytes(c, limits_.tokens, g));
  }
  return most;
}

int64_t Decoder::chunk_rows() const {
  const int64_t rows = logits_bytes_ / (model_->desc().vocab * static_cast<int64_t>(sizeof(float)));
  return std::clamp<int64_t>(rows / 16 * 16, 16, kMaxChunkRows);
}

void Decoder::head_chunk(Exec& e, const WeightView& head, const ConstMat& x, const Mat& normed, float* rstd,
                         const Mat& logits, bool step) const {
  const ModelDesc& d = model_->desc();
  rms_norm_forward(e, x, final_norm(), d.final_norm_offset, d.final_norm_eps, normed, rstd);
  const GemmTerm term{normed, head};
  if (step)
    gemm_few_nt(e, "lm_head", {&term, 1}, {}, logits);
  else
    gemm_nt(e, "lm_head", {&term, 1}, {}, logits);
}

// x: the last block's output. With dx: dL/dx too, zero where a row has no loss.
LossSum Decoder::loss(Exec& e, const TokenBatch& b, const WeightView& head, const ConstMat& x, const Mat* dx,
                      float grad_scale) const {
  const ModelDesc& d = model_->desc();
  const int64_t rows = static_cast<int64_t>(b.loss_rows.size()),
                chunk = std::min(chunk_rows(), limits_.loss_rows);
  const Matrix picked = e.matrix(Region::workspace, "loss_x", x.dtype, chunk, d.dim);
  const Matrix normed = e.matrix(Region::workspace, "loss_normed", numerics_.compute, chunk, d.dim);
  const Matrix rstd = e.matrix(Region::workspace, "loss_rstd", DType::f32, 1, chunk);
  const Matrix logits = e.matrix(Region::logits, "logits", DType::f32, chunk, d.vocab);
  const Matrix d_normed =
      e.matrix(Region::workspace, "loss_d_normed", DType::f32, dx == nullptr ? 0 : chunk, d.dim);
  const Matrix d_picked = e.matrix(Region::workspace, "loss_dx", x.dtype, dx == nullptr ? 0 : chunk, d.dim);
  const Buffer losses = e.allocate(Region::workspace, "losses", static_cast<size_t>(rows) * sizeof(float));
  const Buffer hits = e.allocate(Region::workspace, "hits", static_cast<size_t>(rows));
  if (dx != nullptr) zero_rows(e, *dx);
  e.loop(chunks_of(limits_.loss_rows, chunk), whole_chunks(limits_.loss_rows, chunk), [&](int64_t c) {
    const int64_t begin = std::min(c * chunk, rows), n = std::min(chunk, rows - begin);
    const auto part = [&](const Matrix& m) { return m.view().row_range(0, n); };
    const auto index = b.loss_rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(n));
    gather_rows(e, x, index, part(picked));
    head_chunk(e, head, part(picked), part(normed), rstd.view().row<float>(0), part(logits));
    const Mat gradient = gradient_over(part(logits), numerics_.compute);
    cross_entropy(e, part(logits), b.targets.subspan(static_cast<size_t>(begin), static_cast<size_t>(n)),
                  d.logit_softcap, dx != nullptr ? gradient : Mat{}, grad_scale,
                  {losses.as<float>() + begin, static_cast<size_t>(n)},
                  {hits.as<uint8_t>() + begin, static_cast<size_t>(n)});
    if (dx == nullptr) return;
    const GemmTerm term{gradient, head};
    gemm_nn(e, "lm_head_dx", {&term, 1}, {}, part(d_normed));
    zero_rows(e, part(d_picked));
    rms_norm_backward(e, part(d_normed), part(picked), final_norm(), d.final_norm_offset,
                      rstd.view().row<float>(0), part(d_picked));
    scatter_rows(e, part(d_picked), index, *dx);
  });
  if (e.rehearsing()) return {};
  const auto n = static_cast<size_t>(rows);
  if (!e.on_cuda()) return sum_of({losses.as<float>(), n}, {hits.as<uint8_t>(), n});
  check(b.losses.size() == n && b.hits.size() == n, "a CUDA device's losses have no place to go to");
  e.stream().copy(b.losses.data(), losses.data(), n * sizeof(float));
  e.stream().copy(b.hits.data(), hits.data(), n);
  return {};
}

namespace {

// What an exception leaves of a pass goes with it: spans know their Exec, which may die before the decoder.
struct EmptyAfterwards {
  std::vector<BlockSaved>& saved;
  ~EmptyAfterwards() {
    for (BlockSaved& s : saved) s = {};
  }
};

}  // namespace

LossSum Decoder::train(Exec& e, const TokenBatch& b, const AdapterView& adapter,
                       std::span<const SavePolicy> policy, const DropoutKey& dropout, float grad_scale) {
  const ModelDesc& d = model_->desc();
  const int blocks = model_->block_count();
  check(static_cast<int>(policy.size()) == blocks, "policies for ", policy.size(), " blocks of ", blocks);
  const BlockBatch batch = block_batch(e, b, dropout);
  const auto stream = [&](const char* name) {
    return e.matrix(Region::activations, name, numerics_.stream, batch.tokens, d.dim);
  };
  const EmptyAfterwards empty{saved_};
  static const SavedPages::Pagers none;
  SavedPages saved(e, saved_pages_ == nullptr ? none : *saved_pages_, policy, numerics_.stream, batch.tokens,
                   d.dim);

  PagedWeights::Pass weights(e, *model_, pages_, device_);
  const DecodeAhead::Pass ahead(ahead_.get(), e);
  const auto at = [&](int i) -> BlockSaved& { return saved_[static_cast<size_t>(i)]; };
  e.set_block(0);
  at(0).x0 = saved.input(0);
  weights.embedding_rows(b.ids, d.embed_scale, batch, at(0).x0);
  Matrix last;
  for (int i = 0; i < blocks; ++i) {
    e.set_block(-1);
    const BlockWeights w = weights.acquire(i);
    e.set_block(i);
    const BlockContext c = context(i, w, adapter);
    saved.begin(i, c, at(i));
    block_attend(e, c, batch, policy[static_cast<size_t>(i)], at(i));
    e.set_block(i + 1 < blocks ? i + 1 : -1);
    Matrix y = i + 1 < blocks ? saved.input(i + 1) : stream("last");
    e.set_block(i);
    block_finish(e, c, batch, policy[static_cast<size_t>(i)], at(i), y);
    weights.release(i);
    saved.leave(i, at(i));
    (i + 1 < blocks ? at(i + 1).x0 : last) = std::move(y);
  }
  e.set_block(-1);
  const Matrix dx = stream("dx");
  const LossSum sum = loss(e, b, weights.head(), last, &dx.view(), grad_scale);
  weights.release_head();
  last.reset();
  for (int i = blocks; i-- > 0;) {
    e.set_block(i);
    const BlockWeights w = weights.acquire(i);
    const BlockContext c = context(i, w, adapter);
    saved.back(i, c, at(i));
    block_backward(e, c, batch, policy[static_cast<size_t>(i)], at(i), dx, i > 0);
    weights.release(i);
    saved.drop(i);
  }
  e.set_block(-1);
  weights.end();
  saved.end();
  return sum;
}

Matrix Decoder::forward_only(Exec& e, const TokenBatch& b, const AdapterView& adapter,
                             PagedWeights::Pass& weights, std::vector<std::vector<float>>* hidden) const {
  const ModelDesc& d = model_->desc();
  const BlockBatch batch = block_batch(e, b, {});
  const SavePolicy nothing = SavePolicy::all(Keep::recompute);
  Matrix x = e.matrix(Region::activations, "x0", numerics_.stream, batch.tokens, d.dim);
  weights.embedding_rows(b.ids, d.embed_scale, batch, x);
  for (int i = 0; i < model_->block_count(); ++i) {
    keep_rows(hidden, x);
    BlockSaved saved;
    saved.x0 = std::move(x);
    const BlockWeights w = weights.acquire(i);
    const BlockContext c = context(i, w, adapter);
    block_attend(e, c, batch, nothing, saved);
    Matrix y = e.matrix(Region::activations, "x0", numerics_.stream, batch.tokens, d.dim);
    block_finish(e, c, batch, nothing, saved, y);
    weights.release(i);
    x = std::move(y);
  }
  keep_rows(hidden, x);
  return x;
}

LossSum Decoder::evaluate(Exec& e, const TokenBatch& b, const AdapterView& adapter) const {
  PagedWeights::Pass weights(e, *model_, pages_, device_);
  const DecodeAhead::Pass ahead(ahead_.get(), e);
  const Matrix x = forward_only(e, b, adapter, weights, nullptr);
  const LossSum sum = loss(e, b, weights.head(), x, nullptr, 0);
  weights.release_head();
  weights.end();
  return sum;
}

void Decoder::for_logits(Exec& e, const TokenBatch& b, const AdapterView& adapter,
                         const std::function<void(int64_t, const ConstMat&)>& f,
                         std::vector<std::vector<float>>* hidden) const {
  const ModelDesc& d = model_->desc();
  check(d.logit_softcap == 0, "softcapped logits are not read out");
  check(hidden == nullptr || !e.on_cuda(), "hidden states are read out on the CPU alone");
  PagedWeights::Pass weights(e, *model_, pages_, device_);
  const Matrix x = forward_only(e, b, adapter, weights, hidden);
  const WeightView head = weights.head();
  const int64_t chunk = std::min(chunk_rows(), limits_.tokens), tokens = static_cast<int64_t>(b.ids.size());
  const Matrix normed = e.matrix(Region::workspace, "loss_normed", numerics_.compute, chunk, d.dim);
  const Matrix logits = e.matrix(Region::logits, "logits", DType::f32, chunk, d.vocab);
  Buffer fetched;
  if (e.on_cuda())
    fetched = e.allocate(Region::logits, "logits", static_cast<size_t>(logits.view().bytes()), Place::host);
  e.loop(chunks_of(limits_.tokens, chunk), whole_chunks(limits_.tokens, chunk), [&](int64_t c) {
    const int64_t begin = std::min(c * chunk, tokens), n = std::min(chunk, tokens - begin);
    Mat part = logits.view().row_range(0, n);
    head_chunk(e, head, x.view().row_range(begin, n), normed.view().row_range(0, n), nullptr, part);
    if (e.rehearsing() || n == 0) return;
    if (e.on_cuda()) {
      e.stream().copy(fetched.data(), part.data, static_cast<size_t>(part.bytes()));
      e.stream().synchronize();
      part.data = fetched.data();
    }
    f(begin, part);
  });
  weights.release_head();
  weights.end();
}

void Decoder::infer(Exec& e, const InferBatch& b, const AdapterView& adapter, std::span<const KvCache> caches,
                    const Mat& logits) const {
  if (!e.rehearsing()) rope_.fill();
  const ModelDesc& d = model_->desc();
  const int64_t tokens = static_cast<int64_t>(b.ids.size());
  const size_t docs = b.past.size();
  PagedWeights::Pass weights(e, *model_, nullptr, device_);
  BlockBatch rows;  // for the embedding alone
  rows.tiles = std::max<int64_t>(1, chunks_of(tokens, kRowTile));
  Matrix x = e.matrix(Region::workspace, "x", numerics_.stream, tokens, d.dim),
         y = e.matrix(Region::workspace, "y", numerics_.stream, tokens, d.dim);
  weights.embedding_rows(b.ids, d.embed_scale, rows, x);
  for (int i = 0; i < model_->block_count(); ++i) {
    const BlockWeights w = weights.acquire(i);
    block_infer(e, context(i, w, adapter), b.docs, b.past,
                caches.subspan(static_cast<size_t>(i) * docs, docs), b.positions, b.step, x, y);
    std::swap(x, y);
  }
  const Matrix normed =
      e.matrix(Region::workspace, "normed", numerics_.compute, static_cast<int64_t>(docs), d.dim);
  const Matrix last =
      e.matrix(Region::workspace, "last", numerics_.stream, static_cast<int64_t>(docs), d.dim);
  const Buffer index = e.allocate(Region::workspace, "last_rows", docs * sizeof(int32_t), Place::host);
  if (!e.rehearsing())  // a document without new rows shows row 0: its logits are of no use to anyone
    for (size_t i = 0; i < docs; ++i)
      index.as<int32_t>()[i] = b.docs[i + 1] > b.docs[i] ? b.docs[i + 1] - 1 : 0;
  gather_rows(e, x, {index.as<const int32_t>(), docs}, last);
  head_chunk(e, weights.head(), last, normed, nullptr, logits, b.step);
}

}  // namespace qlora
