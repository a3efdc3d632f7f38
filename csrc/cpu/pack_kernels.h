#pragma once

#include "cpu/kernels.h"

// The layout of packed adapters, for any Simd and element type.

namespace cmlora::cpu {

// Adapters of so few ranks, or that many left over, would waste most lanes of a vector of ranks:
// their vectors run along K, kDotRanks of them at a time.
constexpr int64_t kDotRanks = 4;

static constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

template <typename Simd>
constexpr bool kHasDots = 2 * kDotRanks <= Simd::kWidth;

template <typename Simd>
constexpr bool dots(int64_t ranks) {
  return kHasDots<Simd> && ranks <= Simd::kWidth / 2;
}

// Floats of one panel of shrink factors.
template <typename Simd>
int64_t shrink_panel(int64_t K) {
  return Simd::kWidth * round_up(K, Simd::kWidth);
}

// One panel of at most W ranks: [K, W], or along K, each rank filled up to whole vectors.
template <typename Simd, typename T>
void pack_shrink(const Matrix& a, int64_t ranks, int64_t K, float* out) {
  constexpr int64_t kWidth = Simd::kWidth;
  const bool along = dots<Simd>(ranks);
  const int64_t lanes = along ? round_up(ranks, kDotRanks) : kWidth;
  const int64_t depth = along ? round_up(K, kWidth) : K;
  const int64_t lane_stride = along ? depth : 1, k_stride = along ? 1 : kWidth;
  const T* data = static_cast<const T*>(a.data);
  // Blocks of k: both the reads along a row of `a` and the writes across lanes stay in L1.
  for (int64_t block = 0; block < depth; block += 64) {
    const int64_t end = block + 64 < depth ? block + 64 : depth;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t filled = lane >= ranks ? block : (end < K ? end : K);
      const T* from = data + lane * a.row_stride;
      float* to = out + lane * lane_stride;
      for (int64_t k = block; k < filled; ++k) to[k * k_stride] = to_float(from[k * a.col_stride]);
      for (int64_t k = filled; k < end; ++k) to[k * k_stride] = 0.0f;
    }
  }
}

// One panel of at most 2W columns of m [rank, columns]: [rank, 2W].
template <typename Simd, typename T>
void pack_expand(const Matrix& m, int64_t rank, int64_t columns, float* out) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  const T* data = static_cast<const T*>(m.data);
  for (int64_t column = 0; column < kPanel; ++column) {
    const T* from = data + column * m.col_stride;
    for (int64_t r = 0; r < rank; ++r) {
      out[r * kPanel + column] = column < columns ? to_float(from[r * m.row_stride]) : 0.0f;
    }
  }
}

}  // namespace cmlora::cpu
