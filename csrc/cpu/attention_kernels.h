#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "cpu/exp2.h"
#include "cpu/unroll.h"

// Attention with a running softmax: scores never leave L1. A vector holds queries, so that maxima
// and sums need no work across lanes, and every query's sums run in the order of the keys: a result
// depends neither on its neighbours nor on the threads.

namespace cmlora::cpu {

// Queries of one row and head: out = softmax(scale · q kᵀ) v, the scale for exponentials of base 2.
struct AttentionBlock {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  float* lse;  // [queries] log of the softmax's sums, to base e, or null
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  int64_t out_stride;
  int64_t queries;  // attention_queries at most
  int64_t keys;
  int64_t D;
  float scale;
  float* scratch;  // attention_scratch(D) floats
};

// Queries of a block in panels of two vectors, one register tile each.
constexpr int64_t kQueryPanels = 2;

// Keys whose scores are held at once; a prompt's 77 fit. They are summed by themselves before they
// join those before: one running sum over thousands of keys would lose four times more to rounding
// than torch does.
constexpr int64_t kKeys = 96;

constexpr float kLog2 = 0.69314718f;

template <typename Simd>
constexpr int64_t attention_queries() {
  return kQueryPanels * 2 * Simd::kWidth;
}

// Queries and output transposed, keys, values, and the scores of one panel.
template <typename Simd>
int64_t attention_scratch(int64_t D) {
  return 2 * D * attention_queries<Simd>() + 2 * kKeys * D + kKeys * 2 * Simd::kWidth;
}

// out[M, 2W] = factor · out + Σ_i a[m, i] · b[i, 2W].
template <typename Simd, int M>
void multiply_tile(const float* a, int64_t a_row, int64_t a_depth, const float* b, int64_t b_stride,
                   int64_t depth, const typename Simd::Reg* factor, float* out,
                   int64_t out_stride) {
  constexpr int64_t kWidth = Simd::kWidth;
  typename Simd::Reg sums[M][2];
  for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = Simd::set(0.0f);
  for (int64_t i = 0; i < depth; ++i, a += a_depth, b += b_stride) {
    const auto left = Simd::load(b);
    const auto right = Simd::load(b + kWidth);
    CMLORA_UNROLL
    for (int m = 0; m < M; ++m) {
      const auto value = Simd::set(a[m * a_row]);
      sums[m][0] = Simd::fma(value, left, sums[m][0]);
      sums[m][1] = Simd::fma(value, right, sums[m][1]);
    }
  }
  for (int m = 0; m < M; ++m, out += out_stride) {
    for (int p = 0; p < 2; ++p) {
      float* to = out + p * kWidth;
      Simd::store(
          to, factor == nullptr ? sums[m][p] : Simd::fma(Simd::load(to), factor[p], sums[m][p]));
    }
  }
}

// The same for any number of rows, in tiles of at most M.
template <typename Simd, int M = Simd::kTile>
void multiply(const float* a, int64_t a_row, int64_t a_depth, int64_t rows, const float* b,
              int64_t b_stride, int64_t depth, const typename Simd::Reg* factor, float* out,
              int64_t out_stride) {
  for (; rows >= M; rows -= M, a += M * a_row, out += M * out_stride) {
    multiply_tile<Simd, M>(a, a_row, a_depth, b, b_stride, depth, factor, out, out_stride);
  }
  if constexpr (M > 1) {
    multiply<Simd, M - 1>(a, a_row, a_depth, rows, b, b_stride, depth, factor, out, out_stride);
  }
}

// to[rows, D] = from[rows, D] in float32.
template <typename Simd, typename T>
void load_rows(const T* from, int64_t stride, int64_t rows, int64_t D, float* to) {
  for (int64_t row = 0; row < rows; ++row, from += stride, to += D) {
    int64_t d = 0;
    for (; d + Simd::kWidth <= D; d += Simd::kWidth) Simd::store(to + d, Simd::load(from + d));
    for (; d < D; ++d) to[d] = to_float(from[d]);
  }
}

// The running softmax of one panel of queries.
template <typename Simd>
struct Softmax {
  typename Simd::Reg top[2];
  typename Simd::Reg sum[2];

  Softmax() {
    for (int p = 0; p < 2; ++p) top[p] = Simd::set(-3e38f), sum[p] = Simd::set(0.0f);
  }

  // scores[keys, 2W] become their exponentials; factor[p] is what earlier sums shrink by.
  void take(float* scores, int64_t keys, typename Simd::Reg* factor) {
    constexpr int64_t kWidth = Simd::kWidth;
    for (int p = 0; p < 2; ++p) {
      float* column = scores + p * kWidth;
      auto highest = top[p];
      for (int64_t j = 0; j < keys; ++j) {
        highest = Simd::max(highest, Simd::load(column + j * 2 * kWidth));
      }
      factor[p] = exp2_of_negative<Simd>(Simd::sub(top[p], highest));
      auto total = Simd::set(0.0f);
      for (int64_t j = 0; j < keys; ++j) {
        const auto score = Simd::load(column + j * 2 * kWidth);
        const auto weight = exp2_of_negative<Simd>(Simd::sub(score, highest));
        Simd::store(column + j * 2 * kWidth, weight);
        total = Simd::add(total, weight);
      }
      top[p] = highest;
      sum[p] = Simd::fma(sum[p], factor[p], total);
    }
  }
};

template <typename Simd, typename T>
void attention(const AttentionBlock& block) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  constexpr int64_t kQueries = attention_queries<Simd>();
  const int64_t D = block.D;
  float* queries = block.scratch;        // [D, kQueries]
  float* sums = queries + D * kQueries;  // [D, kQueries]
  float* keys = sums + D * kQueries;     // [kKeys, D]
  float* values = keys + kKeys * D;      // [kKeys, D]
  float* scores = values + kKeys * D;    // [kKeys, kPanel]
  const T* q = static_cast<const T*>(block.q);
  for (int64_t i = 0; i < kQueries; ++i) {
    for (int64_t d = 0; d < D; ++d) {
      const bool there = i < block.queries;
      queries[d * kQueries + i] = there ? to_float(q[i * block.q_stride + d]) * block.scale : 0.0f;
      sums[d * kQueries + i] = 0.0f;
    }
  }
  Softmax<Simd> softmax[kQueryPanels];
  const int64_t panels = (block.queries + kPanel - 1) / kPanel;
  for (int64_t first = 0; first < block.keys; first += kKeys) {
    const int64_t count = block.keys - first < kKeys ? block.keys - first : kKeys;
    const T* k = static_cast<const T*>(block.k) + first * block.k_stride;
    const T* v = static_cast<const T*>(block.v) + first * block.v_stride;
    load_rows<Simd>(k, block.k_stride, count, D, keys);
    load_rows<Simd>(v, block.v_stride, count, D, values);
    for (int64_t panel = 0; panel < panels; ++panel) {
      typename Simd::Reg factor[2];
      multiply<Simd>(keys, D, 1, count, queries + panel * kPanel, kQueries, D, nullptr, scores,
                     kPanel);
      softmax[panel].take(scores, count, factor);
      multiply<Simd>(values, 1, D, D, scores, kPanel, count, factor, sums + panel * kPanel,
                     kQueries);
    }
  }
  T* out = static_cast<T*>(block.out);
  for (int64_t i = 0; i < block.queries; ++i) {
    float total[kPanel];
    float top[kPanel];
    const Softmax<Simd>& mine = softmax[i / kPanel];
    for (int p = 0; p < 2; ++p) {
      Simd::store(total + p * Simd::kWidth, mine.sum[p]);
      Simd::store(top + p * Simd::kWidth, mine.top[p]);
    }
    if (block.lse != nullptr) {
      block.lse[i] = top[i % kPanel] * kLog2 + std::log(total[i % kPanel]);
    }
    for (int64_t d = 0; d < D; ++d) {
      from_float(sums[d * kQueries + i] / total[i % kPanel], out + i * block.out_stride + d);
    }
  }
}

}  // namespace cmlora::cpu
