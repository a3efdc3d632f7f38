#pragma once

#include "cpu/attention_kernels.h"

// Gradients of attention, one row and head at a time: the probabilities are computed again from the
// softmax's sums, that the forward kept. A vector holds keys here, so that the slopes of keys and
// values come as panels, and only those of the queries have D padded to whole panels.

namespace cmlora::cpu {

// Slopes of one row and head.
struct AttentionBackwardBlock {
  void* dq;
  void* dk;  // null, as dv, where none is wanted
  void* dv;
  const void* dout;
  const void* out;
  const void* q;
  const void* k;
  const void* v;
  const float* lse;  // [queries]
  int64_t width;     // stride of the tokens of out and of every slope
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  int64_t queries;
  int64_t keys;
  int64_t D;
  float scale;
  float* scratch;  // attention_backward_scratch(queries, D) floats
};

// Queries whose scores are held at once: whole register tiles of every instruction set.
constexpr int64_t kChunk = 48;

// Memory of one row and head in float32, one array behind the other.
template <typename Simd>
struct AttentionSlopes {
  static constexpr int64_t kPanel = 2 * Simd::kWidth;

  int64_t D;
  int64_t padded;  // D in whole panels
  float* q;        // [queries, D], for scores of exponentials of base 2
  float* dout;     // [queries, D]
  float* dq;       // [queries, padded], without the scale
  float* lse;      // [queries], to base 2
  float* delta;    // [queries] out · d out
  float* rows;     // [kPanel, padded] keys of a panel
  float* keys;     // [D, kPanel] the same
  float* values;   // [D, kPanel]
  float* dk;       // [D, kPanel]
  float* dv;       // [D, kPanel]
  float* weights;  // [kChunk, kPanel] probabilities
  float* slopes;   // [kChunk, kPanel] of the scores
  int64_t size = 0;

  AttentionSlopes(float* memory, int64_t queries, int64_t features) : D(features) {
    padded = (D + kPanel - 1) / kPanel * kPanel;
    const auto take = [&](int64_t count) {
      float* here = memory == nullptr ? nullptr : memory + size;
      size += count;
      return here;
    };
    q = take(queries * D), dout = take(queries * D), dq = take(queries * padded);
    lse = take(queries), delta = take(queries), rows = take(kPanel * padded);
    keys = take(D * kPanel), values = take(D * kPanel), dk = take(D * kPanel);
    dv = take(D * kPanel), weights = take(kChunk * kPanel), slopes = take(kChunk * kPanel);
  }
};

template <typename Simd>
int64_t attention_backward_scratch(int64_t queries, int64_t D) {
  return AttentionSlopes<Simd>(nullptr, queries, D).size;
}

// to[D, 2W] = the rows of from, transposed; zero where there are none.
template <typename Simd, typename T>
void load_panel(const T* from, int64_t stride, int64_t count, int64_t D, float* to) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t j = 0; j < kPanel; ++j) {
      to[d * kPanel + j] = j < count ? to_float(from[j * stride + d]) : 0.0f;
    }
  }
}

// The rows of to = factor · from[D, 2W], transposed.
template <typename Simd, typename T>
void store_panel(const float* from, float factor, int64_t count, int64_t D, T* to, int64_t stride) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t d = 0; d < D; ++d) {
      from_float(factor * from[d * 2 * Simd::kWidth + j], to + j * stride + d);
    }
  }
}

template <typename Simd, typename T>
void load_queries(const AttentionBackwardBlock& block, const AttentionSlopes<Simd>& mine) {
  const T* q = static_cast<const T*>(block.q);
  const T* out = static_cast<const T*>(block.out);
  const T* dout = static_cast<const T*>(block.dout);
  const int64_t D = mine.D;
  load_rows<Simd>(dout, block.width, block.queries, D, mine.dout);
  for (int64_t i = 0; i < block.queries; ++i, q += block.q_stride, out += block.width) {
    float delta = 0.0f;
    for (int64_t d = 0; d < D; ++d) {
      mine.q[i * D + d] = to_float(q[d]) * block.scale / kLog2;
      delta += to_float(out[d]) * mine.dout[i * D + d];
    }
    mine.delta[i] = delta;
    mine.lse[i] = block.lse[i] / kLog2;
  }
  for (int64_t i = 0; i < block.queries * mine.padded; ++i) mine.dq[i] = 0.0f;
}

// Probabilities and slopes of the scores, of `count` queries and a panel of keys.
template <typename Simd>
void slopes_of_scores(const AttentionSlopes<Simd>& mine, int64_t first, int64_t count) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  const int64_t D = mine.D;
  multiply<Simd>(mine.q + first * D, D, 1, count, mine.keys, kPanel, D, nullptr, mine.weights,
                 kPanel);
  multiply<Simd>(mine.dout + first * D, D, 1, count, mine.values, kPanel, D, nullptr, mine.slopes,
                 kPanel);
  for (int64_t i = 0; i < count; ++i) {
    const auto lse = Simd::set(mine.lse[first + i]);
    const auto delta = Simd::set(mine.delta[first + i]);
    for (int64_t at = i * kPanel; at < (i + 1) * kPanel; at += Simd::kWidth) {
      const auto weight = exp2_of_negative<Simd>(Simd::sub(Simd::load(mine.weights + at), lse));
      Simd::store(mine.weights + at, weight);
      Simd::store(mine.slopes + at,
                  Simd::mul(weight, Simd::sub(Simd::load(mine.slopes + at), delta)));
    }
  }
}

template <typename Simd, typename T>
void attention_backward(const AttentionBackwardBlock& block) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  const AttentionSlopes<Simd> mine(block.scratch, block.queries, block.D);
  const typename Simd::Reg one[2] = {Simd::set(1.0f), Simd::set(1.0f)};
  const int64_t D = mine.D, padded = mine.padded;
  load_queries<Simd, T>(block, mine);
  for (int64_t i = 0; i < kPanel * padded; ++i) mine.rows[i] = 0.0f;
  for (int64_t key = 0; key < block.keys; key += kPanel) {
    const int64_t keys = block.keys - key < kPanel ? block.keys - key : kPanel;
    load_panel<Simd>(static_cast<const T*>(block.k) + key * block.k_stride, block.k_stride, keys, D,
                     mine.keys);
    load_panel<Simd>(static_cast<const T*>(block.v) + key * block.v_stride, block.v_stride, keys, D,
                     mine.values);
    for (int64_t i = 0; i < D * kPanel; ++i) {
      mine.rows[i % kPanel * padded + i / kPanel] = mine.keys[i];
      mine.dk[i] = mine.dv[i] = 0.0f;
    }
    for (int64_t first = 0; first < block.queries; first += kChunk) {
      const int64_t count = block.queries - first < kChunk ? block.queries - first : kChunk;
      slopes_of_scores(mine, first, count);
      for (int64_t d = 0; d < padded; d += kPanel) {
        multiply<Simd>(mine.slopes, kPanel, 1, count, mine.rows + d, padded, keys, one,
                       mine.dq + first * padded + d, padded);
      }
      if (block.dk == nullptr) continue;
      multiply<Simd>(mine.q + first * D, 1, D, D, mine.slopes, kPanel, count, one, mine.dk, kPanel);
      multiply<Simd>(mine.dout + first * D, 1, D, D, mine.weights, kPanel, count, one, mine.dv,
                     kPanel);
    }
    if (block.dk == nullptr) continue;
    store_panel<Simd>(mine.dk, kLog2, keys, D, static_cast<T*>(block.dk) + key * block.width,
                      block.width);
    store_panel<Simd>(mine.dv, 1.0f, keys, D, static_cast<T*>(block.dv) + key * block.width,
                      block.width);
  }
  T* dq = static_cast<T*>(block.dq);
  for (int64_t i = 0; i < block.queries; ++i, dq += block.width) {
    for (int64_t d = 0; d < D; ++d) from_float(block.scale * mine.dq[i * padded + d], dq + d);
  }
}

}  // namespace cmlora::cpu
