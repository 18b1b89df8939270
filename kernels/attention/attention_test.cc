#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include "kernels/attention/attention_ref.h"
#include "tests/support/body.h"
#include "tests/support/dual.h"

namespace qlora {
namespace {

using testing::Dual;
using testing::kU;
using testing::Tensor;

struct Case {
  const char* name;
  AttentionShape shape;
  std::vector<int> queries, keys;  // of each document
  int64_t gap = 8;                 // between rows; 3: they begin anywhere, not on 16 bytes
};

AttentionShape shape(int q_heads, int kv_heads, int dim, int window = 0, float softcap = 0) {
  return {q_heads, kv_heads, dim, 1.f / std::sqrt(static_cast<float>(dim)), window, softcap};
}

// The quickest first: a fault is seen the sooner.
const Case kCases[] = {
    {"one_token", shape(1, 1, 8), {1}, {1}},
    {"no_tokens_between", shape(2, 1, 16), {5, 0, 1, 9}, {5, 0, 1, 9}},
    {"keys_without_queries", shape(2, 1, 16), {5, 0, 3, 0}, {5, 40, 3, 150}},
    {"unseen_keys", shape(2, 1, 16, 5), {7}, {150}},
    {"window_of_one", shape(2, 1, 8, 1), {67}, {67}},
    {"dim_200", shape(1, 1, 200), {5}, {5}, 3},
    {"window_short_of_a_tile", shape(1, 1, 8, 63), {64}, {64}},
    {"window_in_a_tile", shape(2, 1, 16, 5), {70, 3}, {70, 3}, 3},
    {"window_of_two", shape(1, 1, 8, 2), {130}, {130}},  // its far end is another tile's in every kernel
    {"cache_window", shape(2, 1, 16, 7), {1, 3, 70}, {40, 3, 150}},
    {"softcap", shape(2, 1, 32, 0, 1.5f), {66}, {66}, 3},
    {"softcap_window", shape(2, 1, 40, 9, 0.8f), {66, 2}, {66, 2}},
    {"dim_128", shape(1, 1, 128), {70}, {70}},
    {"cache", shape(2, 1, 16), {1, 3, 70}, {40, 3, 150}, 3},
    {"lanes_that_do_not_fill", shape(3, 3, 24), {63, 65}, {63, 65}, 3},
    {"dim_96", shape(2, 1, 96), {66}, {66}},
    {"window_of_a_tile", shape(2, 2, 32, 64), {150}, {150}},
    {"dim_256", shape(1, 1, 256), {66}, {66}},
    {"window_over_tiles", shape(1, 1, 32, 100), {260}, {260}},
    {"dim_256_group", shape(2, 1, 256, 0, 2.f), {40}, {70}},
    {"group_of_nine", shape(9, 1, 8), {130, 5}, {130, 5}},
    {"group_of_six_window_cache", shape(6, 1, 24, 70), {70, 3}, {140, 67}},
    {"dim_128_group_window", shape(2, 1, 128, 50), {140}, {150}},
    {"groups_across_tiles", shape(4, 2, 64), {130, 7}, {130, 7}},
};

struct Data {
  std::vector<int32_t> q_bounds{0}, k_bounds{0};
  Tensor q, k, v, d_o;
};

Data make(const Case& c, DType t) {
  std::vector<int32_t> qb{0}, kb{0};
  for (int n : c.queries) qb.push_back(qb.back() + n);
  for (int n : c.keys) kb.push_back(kb.back() + n);
  const int64_t wide = c.shape.q_heads * c.shape.head_dim, narrow = c.shape.kv_heads * c.shape.head_dim;
  return {qb,
          kb,
          Tensor::normal(t, qb.back(), wide, 1, 1.5, c.gap),
          Tensor::normal(t, kb.back(), narrow, 2, 1.5, c.gap),
          Tensor::normal(t, kb.back(), narrow, 3, 1, c.gap),
          Tensor::normal(t, qb.back(), wide, 4, 1, c.gap)};
}

struct Results {
  Tensor o, lse, dq, dk, dv;
};

Results run(const Case& c, const Data& d, int threads) {
  const DType t = d.q.dtype();
  const ConstMat q = d.q, k = d.k, v = d.v;
  Results r{Tensor(t, q.rows, q.cols, c.gap), Tensor(DType::f32, c.shape.q_heads, q.rows),
            Tensor(t, q.rows, q.cols, c.gap), Tensor(t, k.rows, k.cols, c.gap),
            Tensor(t, k.rows, k.cols, c.gap)};
  const Segments docs{d.q_bounds, d.k_bounds};
  testing::run_planned(threads, [&](Exec& e) {
    attention_forward(e, c.shape, docs, q, k, v, r.o.mat(), r.lse.mat());
    attention_backward(e, c.shape, docs, d.d_o, q, k, v, r.o, r.lse, r.dq.mat(), r.dk.mat(), r.dv.mat());
  });
  return r;
}

// Errors of an fp32 evaluation, from the definition's own terms. A score is a sum of dim products, (dim + 1)
// u sum|q k| scale; its distance from the maximum has a factor of 1.3 u, a shift of u and a rounding: 6 u of
// the largest such sum. A cap adds tanh's 4 u (absolute) times the cap. exp turns absolute errors of its
// argument and of lse (stored within 2 u, used within 2.3 u) into relative ones of p. Sums add (keys + 8) u.
struct Bounds {
  std::vector<double> o, lse, dq, dk, dv;
};

struct Document {
  int64_t queries, keys;
  std::vector<double> q, k, v, d_o, o, p, lse, dq, dk, dv;
};

// Relative errors beside fp32's.
struct Loss {
  double rounded = 0, power = 0;  // of p and ds where products take them; of an exponential: two make p
};
Bounds bounds(const AttentionShape& s, const Document& d, DType t, const Loss& loss) {
  const int64_t dim = s.head_dim, qw = s.q_heads * dim, kw = s.kv_heads * dim;
  Bounds b{std::vector<double>(d.q.size()), std::vector<double>(d.lse.size()),
           std::vector<double>(d.q.size()), std::vector<double>(d.k.size()), std::vector<double>(d.k.size())};
  std::vector<double> dot(d.keys), size(d.keys), score_error(d.keys);
  for (int64_t h = 0; h < s.q_heads; ++h)
    for (int64_t i = 0; i < d.queries; ++i) {
      const int64_t g = h / (s.q_heads / s.kv_heads), last = i + d.keys - d.queries;
      const int64_t first = ref::attention_first(s, last);
      const double* p = d.p.data() + (h * d.queries + i) * d.keys;
      const double* d_o = d.d_o.data() + i * qw + h * dim;
      double worst = 0, mean = 0, mean_size = 0;
      for (int64_t j = first; j <= last; ++j) {
        double qk = 0, score = 0;
        dot[j] = size[j] = 0;
        for (int64_t c = 0; c < dim; ++c) {
          const double product = d.q[i * qw + h * dim + c] * d.k[j * kw + g * dim + c];
          qk += std::abs(product);
          score += product;
          dot[j] += d_o[c] * d.v[j * kw + g * dim + c];
          size[j] += std::abs(d_o[c] * d.v[j * kw + g * dim + c]);
        }
        score_error[j] = kU * ((dim + 8) * qk * s.scale + 4 * s.softcap);
        worst = std::max(worst, score_error[j]);
        mean += p[j] * dot[j];
      }
      const double lse = std::abs(d.lse[h * d.queries + i]);
      b.lse[h * d.queries + i] = worst + loss.power + kU * (d.keys + 8 + 2 * lse);
      const double p_error = 2 * (worst + loss.power) + kU * (d.keys + 16 + 5 * lse);  // relative
      for (int64_t c = 0; c < dim; ++c) {
        double sum = 0;
        for (int64_t j = first; j <= last; ++j) sum += p[j] * std::abs(d.v[j * kw + g * dim + c]);
        b.o[i * qw + h * dim + c] = sum * (p_error + loss.rounded + kU * (d.keys + 8));
        mean_size += std::abs(d_o[c] * d.o[i * qw + h * dim + c]);
      }
      // delta is taken from o as stored.
      double mean_error = (testing::unit_roundoff(t) + kU * (dim + 4)) * mean_size;
      for (int64_t c = 0; c < dim; ++c) mean_error += std::abs(d_o[c]) * b.o[i * qw + h * dim + c];
      for (int64_t j = first; j <= last; ++j) {
        const double ds = p[j] * std::abs(dot[j] - mean) * s.scale;
        double ds_error = ds * (p_error + 8 * kU) + p[j] * s.scale * (mean_error + kU * (dim + 4) * size[j]);
        if (s.softcap > 0) ds_error += ds * (2 * score_error[j] / s.softcap + 8 * kU);
        for (int64_t c = 0; c < dim; ++c) {
          const int64_t at_q = i * qw + h * dim + c, at_k = j * kw + g * dim + c;
          b.dq[at_q] += std::abs(d.k[at_k]) * (ds_error + (loss.rounded + kU * (d.keys + 8)) * ds);
          b.dk[at_k] +=
              std::abs(d.q[at_q]) * (ds_error + (loss.rounded + kU * (d.queries * s.q_heads + 8)) * ds);
          b.dv[at_k] += std::abs(d_o[c]) * p[j] * (p_error + loss.rounded + kU * (d.queries * s.q_heads + 8));
        }
      }
    }
  return b;
}

std::vector<double> rows_of(const Tensor& t, int64_t begin, int64_t end) {
  const int64_t cols = ConstMat(t).cols;
  const std::vector<double> all = t.values();
  return {all.begin() + begin * cols, all.begin() + end * cols};
}

Document reference(const Case& c, const Data& d, size_t i) {
  Document r;
  r.queries = c.queries[i];
  r.keys = c.keys[i];
  r.q = rows_of(d.q, d.q_bounds[i], d.q_bounds[i + 1]);
  r.d_o = rows_of(d.d_o, d.q_bounds[i], d.q_bounds[i + 1]);
  r.k = rows_of(d.k, d.k_bounds[i], d.k_bounds[i + 1]);
  r.v = rows_of(d.v, d.k_bounds[i], d.k_bounds[i + 1]);
  r.o = r.dq = r.q;
  r.dk = r.dv = r.k;
  r.p.resize(c.shape.q_heads * r.queries * r.keys);
  r.lse.resize(c.shape.q_heads * r.queries);
  ref::attention_forward(c.shape, r.queries, r.keys, r.q.data(), r.k.data(), r.v.data(), r.o.data(),
                         r.p.data(), r.lse.data());
  ref::attention_backward(c.shape, r.queries, r.keys, r.d_o.data(), r.q.data(), r.k.data(), r.v.data(),
                          r.p.data(), r.dq.data(), r.dk.data(), r.dv.data());
  return r;
}

void expect_close(const char* what, const Tensor& got, int64_t first_row, const std::vector<double>& expected,
                  const std::vector<double>& error) {
  const int64_t cols = ConstMat(got).cols;
  for (size_t i = 0; i < expected.size(); ++i) {
    const int64_t row = first_row + static_cast<int64_t>(i) / cols, col = static_cast<int64_t>(i) % cols;
    ASSERT_TRUE(testing::close(got.get(row, col), expected[i], error[i], got.dtype()))
        << what << "[" << row << ", " << col << "] = " << got.get(row, col) << ", not " << expected[i]
        << " +- " << error[i];
  }
}

// Products take p and ds as bf16 on CUDA and on the ISAs that multiply it, whose exponentials are shorter.
Loss loss(const testing::Body& body, DType t) {
  const bool cuda = body.device.kind == DeviceKind::cuda;
  if (t != DType::bf16 || !(cuda || multiplies_bf16(body.isa))) return {};
  return {testing::unit_roundoff(DType::bf16), cuda ? 0 : std::exp2(-18.5)};
}

void expect_agrees(const Case& c, const Data& d, const testing::Body& body, DType t) {
  const Results r = run(c, d, 2);
  for (size_t i = 0; i < c.queries.size(); ++i) {
    const Document m = reference(c, d, i);
    const Bounds b = bounds(c.shape, m, t, loss(body, t));
    expect_close("o", r.o, d.q_bounds[i], m.o, b.o);
    expect_close("dq", r.dq, d.q_bounds[i], m.dq, b.dq);
    expect_close("dk", r.dk, d.k_bounds[i], m.dk, b.dk);
    expect_close("dv", r.dv, d.k_bounds[i], m.dv, b.dv);
    for (int h = 0; h < c.shape.q_heads; ++h)
      for (int64_t j = 0; j < m.queries; ++j)
        ASSERT_TRUE(testing::close(r.lse.get(h, d.q_bounds[i] + j), m.lse[h * m.queries + j],
                                   b.lse[h * m.queries + j], DType::f32))
            << "lse of head " << h << ", query " << j;
  }
  for (const Tensor* x : {&r.o, &r.lse, &r.dq, &r.dk, &r.dv}) testing::expect_clean(*x);
}

class AttentionCase : public ::testing::TestWithParam<Case> {};
TEST_P(AttentionCase, AgreesWithTheDefinition) {
  const Case& c = GetParam();
  for (DType t : {DType::f32, DType::bf16})
    for (const testing::Body& body : testing::bodies()) {
      if (body.variant % 3 != 0) continue;  // those left differ in schedule and poison
      SCOPED_TRACE(cat(name_of(t), " ", body.name()));
      const testing::WithBody with(body);
      expect_agrees(c, make(c, t), body, t);
    }
}

// Each block of keys weighs far more than the one before: what was summed is scaled down.
TEST(Attention, LaterKeysOutweighEarlierOnes) {
  const Case c{"", shape(1, 1, 8), {150}, {150}};
  for (const testing::Body& body : testing::bodies()) {
    if (body.variant != 0) continue;
    const testing::WithBody with(body);
    Data d = make(c, DType::bf16);
    std::vector<double> k = d.k.values();
    for (size_t i = 0; i < k.size(); ++i) k[i] *= std::exp2(3 * static_cast<double>(i / (8 * 64)) - 2);
    d.k = Tensor::of(DType::bf16, 150, 8, k);
    expect_agrees(c, d, body, DType::bf16);
  }
}

TEST_P(AttentionCase, SameBitsWhateverTheThreads) {
  for (DType t : {DType::f32, DType::bf16}) {
    const Data d = make(GetParam(), t);
    const Results one = run(GetParam(), d, 1), three = run(GetParam(), d, 3);
    EXPECT_TRUE(one.o == three.o && one.lse == three.lse);
    EXPECT_TRUE(one.dq == three.dq && one.dk == three.dk && one.dv == three.dv);
  }
}

TEST_P(AttentionCase, DqMayTakeThePlaceOfDo) {
  const Case& c = GetParam();
  for (DType t : {DType::f32, DType::bf16})
    for (const testing::Body& body : testing::bodies()) {
      if (body.variant != 0) continue;
      SCOPED_TRACE(cat(name_of(t), " ", body.name()));
      const testing::WithBody with(body);
      const Data d = make(c, t);
      const Results apart = run(c, d, 2);
      Tensor place = d.d_o, dk = apart.dk, dv = apart.dv;
      testing::run_planned(3, [&](Exec& e) {
        attention_backward(e, c.shape, {d.q_bounds, d.k_bounds}, place, d.q, d.k, d.v, apart.o, apart.lse,
                           place.mat(), dk.mat(), dv.mat());
      });
      EXPECT_EQ(place.values(), apart.dq.values());
      EXPECT_TRUE(dk == apart.dk && dv == apart.dv);
    }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionCase, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

// A document's results have the same bits alone and between others.
TEST(Attention, DocumentsDoNotSeeEachOther) {
  const Case both{"", shape(2, 1, 16, 9), {37, 70}, {37, 70}}, second{"", both.shape, {70}, {70}};
  for (DType t : {DType::f32, DType::bf16})
    testing::for_each_body([&] {
      const Data d = make(both, t);
      const Results packed = run(both, d, 1);
      const auto cut = [&](const Tensor& x) {
        return Tensor::of(t, 70, ConstMat(x).cols, rows_of(x, 37, 107));
      };
      const Results alone = run(second, {{0, 70}, {0, 70}, cut(d.q), cut(d.k), cut(d.v), cut(d.d_o)}, 1);
      for (Tensor Results::*x : {&Results::o, &Results::dq, &Results::dk, &Results::dv})
        EXPECT_EQ(rows_of(packed.*x, 37, 107), (alone.*x).values());
    });
}

TEST(Attention, ForwardAloneNeedsNoLse) {
  testing::for_each_body([] {
    const Case c{"", shape(2, 1, 16), {37}, {37}};
    const Data d = make(c, DType::bf16);
    Tensor o(DType::bf16, 37, 32, c.gap);
    testing::run_planned(1, [&](Exec& e) {
      attention_forward(e, c.shape, {d.q_bounds, d.k_bounds}, d.q, d.k, d.v, o.mat(), {});
    });
    EXPECT_TRUE(o == run(c, d, 1).o);
  });
}

// More documents than a launch has room for, at begins that a tile of another document may have.
TEST(Attention, ManyDocuments) {
  testing::for_each_body([] {
    const Case one{"", shape(2, 1, 64), {2}, {2}};
    const Case many{"", one.shape, std::vector<int>(130, 2), std::vector<int>(130, 2)};
    const Data d = make(many, DType::bf16);
    const Results all = run(many, d, 2);
    const auto cut = [](const Tensor& t, int64_t i) {
      return Tensor::of(DType::bf16, 2, ConstMat(t).cols, rows_of(t, 2 * i, 2 * i + 2));
    };
    for (int64_t i : {0, 127, 128, 129}) {
      const Data alone{{0, 2}, {0, 2}, cut(d.q, i), cut(d.k, i), cut(d.v, i), cut(d.d_o, i)};
      const Results r = run(one, alone, 1);
      for (Tensor Results::*x : {&Results::o, &Results::dq, &Results::dk, &Results::dv})
        EXPECT_EQ(rows_of(all.*x, 2 * i, 2 * i + 2), (r.*x).values());
    }
  });
}

TEST(Attention, RefusesWhatDoesNotFit) {
  Tensor q(DType::f32, 4, 32), k(DType::f32, 4, 16), o(DType::f32, 4, 32);
  const auto forward = [&](const AttentionShape& s, const std::vector<int32_t>& qb,
                           const std::vector<int32_t>& kb) {
    testing::run_planned(1, [&](Exec& e) { attention_forward(e, s, {qb, kb}, q, k, k, o.mat(), {}); });
  };
  forward(shape(2, 1, 16), {0, 4}, {0, 4});
  EXPECT_THROW(forward(shape(2, 1, 16), {0, 3}, {0, 4}), Error);        // a row of no document
  EXPECT_THROW(forward(shape(2, 1, 16), {0, 3, 4}, {0, 2, 4}), Error);  // more queries than keys
  EXPECT_THROW(forward(shape(2, 1, 16), {0, 5, 4}, {0, 5, 4}), Error);  // descending
  EXPECT_THROW(forward(shape(4, 2, 16), {0, 4}, {0, 4}), Error);        // other heads than q has columns
  EXPECT_THROW(forward(shape(8, 4, 4), {0, 4}, {0, 4}), Error);         // a head of 4
}

// The definition's backward pass against derivatives of its forward pass, one input at a time.
TEST(Attention, ReferenceGradients) {
  const AttentionShape shapes[] = {shape(2, 1, 4), shape(4, 2, 3, 3), shape(2, 2, 3, 0, .7f),
                                   shape(2, 1, 4, 2, 1.3f)};
  for (const AttentionShape& s : shapes)
    for (int64_t keys : {5, 7}) {
      const int64_t queries = 5, qn = queries * s.q_heads * s.head_dim, kn = keys * s.kv_heads * s.head_dim;
      const auto draw = [](int64_t n, uint64_t seed) {
        std::mt19937_64 random(seed);
        std::vector<double> v(n);
        for (double& x : v) x = std::normal_distribution<double>()(random);
        return v;
      };
      const std::vector<double> q = draw(qn, 1), k = draw(kn, 2), v = draw(kn, 3), d_o = draw(qn, 4);
      std::vector<double> o(qn), p(s.q_heads * queries * keys), lse(s.q_heads * queries);
      std::vector<double> dq(qn), dk(kn), dv(kn);
      ref::attention_forward(s, queries, keys, q.data(), k.data(), v.data(), o.data(), p.data(), lse.data());
      ref::attention_backward(s, queries, keys, d_o.data(), q.data(), k.data(), v.data(), p.data(), dq.data(),
                              dk.data(), dv.data());
      std::vector<Dual> q2 = testing::convert<Dual>(q), k2 = testing::convert<Dual>(k);
      std::vector<Dual> v2 = testing::convert<Dual>(v);
      std::vector<Dual> o2(o.size()), p2(p.size()), lse2(lse.size());
      const auto derivative = [&](Dual& x) {
        x.d = 1;
        ref::attention_forward(s, queries, keys, q2.data(), k2.data(), v2.data(), o2.data(), p2.data(),
                               lse2.data());
        x.d = 0;
        double sum = 0;
        for (size_t i = 0; i < o2.size(); ++i) sum += o2[i].d * d_o[i];
        return sum;
      };
      for (int64_t i = 0; i < qn; ++i) EXPECT_NEAR(dq[i], derivative(q2[i]), 1e-12);
      for (int64_t i = 0; i < kn; ++i) EXPECT_NEAR(dk[i], derivative(k2[i]), 1e-12);
      for (int64_t i = 0; i < kn; ++i) EXPECT_NEAR(dv[i], derivative(v2[i]), 1e-12);
    }
}

// What is planned for the largest batch serves a smaller one.
TEST(Attention, WorkspaceOfASmallerBatchFits) {
  const AttentionShape s = shape(2, 1, 16);
  const auto plan = [&](int32_t rows) {
    const std::vector<int32_t> bounds{0, rows};
    const Mat q(static_cast<float*>(nullptr), rows, 32), k(static_cast<float*>(nullptr), rows, 16);
    const Mat lse(static_cast<float*>(nullptr), 2, rows);
    return testing::rehearse(2, [&](Exec& e) {
      attention_forward(e, s, {bounds, bounds}, q, k, k, q, lse);
      attention_backward(e, s, {bounds, bounds}, q, q, k, k, q, lse, q, k, k);
    });
  };
  const Trace large = plan(100), small = plan(9);
  ASSERT_EQ(large.spans.size(), small.spans.size());
  for (size_t i = 0; i < large.spans.size(); ++i) {
    EXPECT_EQ(large.spans[i].name, small.spans[i].name);
    EXPECT_GE(large.spans[i].bytes, small.spans[i].bytes);
  }
  EXPECT_EQ(large.ops.size(), 2u);
}

}  // namespace
}  // namespace qlora
