#pragma once

#include <type_traits>

#include "cpu/expand_kernels.h"

// Register tiles of lora_delta_, for any Simd and element type. Every sum runs in the
// same order whatever the tile, so a result depends neither on its neighbours nor on the threads.

namespace cmlora::cpu {

// Consecutive tokens of one row: y += Σ scale · (x Aᵀ) Bᵀ.
struct DeltaBlock {
  const void* x;
  void* y;
  int64_t x_stride;
  int64_t y_stride;
  int64_t tokens;
  int64_t K;
  int64_t N;
  const Segment* segments;
  int64_t segment_count;
  int64_t padded_rank;  // sum of the ranks, each rounded up to W
  float* scratch;       // delta_scratch(padded_rank) floats
};

// 16 more floats per row keep the rows of a tile from sharing cache sets.
constexpr int64_t kDepthStride = kDepth + 16;

template <typename Simd>
int64_t delta_scratch(int64_t padded_rank) {
  return Simd::kTile * (kDepthStride + padded_rank);
}

// to[M, kDepthStride] = from[M, depth] in float32.
template <typename Simd, typename T, int M>
void load_tile(const T* from, int64_t stride, int64_t depth, float* to) {
  for (int m = 0; m < M; ++m, from += stride, to += kDepthStride) {
    int64_t k = 0;
    for (; k + Simd::kWidth <= depth; k += Simd::kWidth) Simd::store(to + k, Simd::load(from + k));
    for (; k < depth; ++k) to[k] = to_float(from[k]);
  }
}

// hidden[P, M, W] += x[M, depth] · Aᵀ for P vectors of ranks.
template <typename Simd, int M, int P>
void shrink(const float* x, int64_t stride, const float* a, int64_t panel, int64_t depth,
            float* hidden) {
  constexpr int64_t kLine = 64 / sizeof(float);
  typename Simd::Reg sums[M][P];
  CMLORA_UNROLL
  for (int m = 0; m < M; ++m) {
    CMLORA_UNROLL
    for (int p = 0; p < P; ++p) sums[m][p] = Simd::set(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k, ++x, a += Simd::kWidth) {
    if (k % kLine == 0) {  // the tile after this one
      for (int m = 0; m < M; ++m) __builtin_prefetch(x + (M + m) * stride);
    }
    typename Simd::Reg ranks[P];
    CMLORA_UNROLL
    for (int p = 0; p < P; ++p) ranks[p] = Simd::load(a + p * panel);
    CMLORA_UNROLL
    for (int m = 0; m < M; ++m) {
      const auto value = Simd::set(x[m * stride]);
      CMLORA_UNROLL
      for (int p = 0; p < P; ++p) sums[m][p] = Simd::fma(value, ranks[p], sums[m][p]);
    }
  }
  CMLORA_UNROLL
  for (int p = 0; p < P; ++p) {
    CMLORA_UNROLL
    for (int m = 0; m < M; ++m, hidden += Simd::kWidth) {
      Simd::store(hidden, Simd::add(Simd::load(hidden), sums[m][p]));
    }
  }
}

// The first `count` elements, then zeros.
template <typename Simd, typename T>
typename Simd::Reg load_part(const T* from, int64_t count) {
  T filled[Simd::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) filled[i] = from[i];
  return Simd::load(filled);
}

// hidden[M, W], its first kDotRanks lanes, += x[M, depth] · Aᵀ; a [kDotRanks, stride a_stride].
template <typename Simd, typename T, int M>
void shrink_dots(const T* x, int64_t stride, const float* a, int64_t a_stride, int64_t depth,
                 float* hidden) {
  constexpr int64_t kWidth = Simd::kWidth;
  typename Simd::Reg sums[M][kDotRanks];
  CMLORA_UNROLL
  for (int m = 0; m < M; ++m) {
    CMLORA_UNROLL
    for (int r = 0; r < kDotRanks; ++r) sums[m][r] = Simd::set(0.0f);
  }
  const auto add = [&](const typename Simd::Reg(&values)[M], int64_t k) {
    CMLORA_UNROLL
    for (int r = 0; r < kDotRanks; ++r) {
      const auto rank = Simd::load(a + r * a_stride + k);
      CMLORA_UNROLL
      for (int m = 0; m < M; ++m) sums[m][r] = Simd::fma(values[m], rank, sums[m][r]);
    }
  };
  typename Simd::Reg values[M];
  int64_t k = 0;
  for (; k + kWidth <= depth; k += kWidth) {
    CMLORA_UNROLL
    for (int m = 0; m < M; ++m) {
      values[m] = Simd::load(x + m * stride + k);
      __builtin_prefetch(x + (Simd::kTile + m) * stride + k);  // the tile after this one
    }
    add(values, k);
  }
  if (k < depth) {
    CMLORA_UNROLL
    for (int m = 0; m < M; ++m) values[m] = load_part<Simd>(x + m * stride + k, depth - k);
    add(values, k);
  }
  CMLORA_UNROLL
  for (int m = 0; m < M; ++m, hidden += kWidth) {
    Simd::add_sums(sums[m][0], sums[m][1], sums[m][2], sums[m][3], hidden);
  }
}

// hidden [padded_rank / W, M, W] += x[M, depth] · Aᵀ from input feature `first` on, by vectors of
// ranks, for all segments.
template <typename Simd, int M>
void shrink_tile(const DeltaBlock& block, const float* x, int64_t stride, int64_t first,
                 int64_t depth, float* hidden) {
  constexpr int64_t kWidth = Simd::kWidth;
  const int64_t panel = shrink_panel<Simd>(block.K);
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const float* a = block.segments[s].shrink + first * kWidth;
    int64_t rank = block.segments[s].rank;
    for (; rank > kWidth && !dots<Simd>(rank - kWidth); rank -= 2 * kWidth, a += 2 * panel) {
      shrink<Simd, M, 2>(x, stride, a, panel, depth, hidden);
      hidden += 2 * M * kWidth;
    }
    if (rank > 0 && !dots<Simd>(rank)) {
      shrink<Simd, M, 1>(x, stride, a, panel, depth, hidden);
      hidden += M * kWidth;
      rank -= kWidth;
    }
    if (rank > 0) hidden += M * kWidth;
  }
}

// The same for the ranks left over, by vectors along K.
template <typename Simd, typename T, int M>
void shrink_rests(const DeltaBlock& block, const T* x, float* hidden) {
  constexpr int64_t kWidth = Simd::kWidth;
  constexpr int64_t kPass = kDepth * kWidth;  // each lane sums kDepth products
  constexpr int kRows = M % 2 == 0 ? M / 2 : M;
  const int64_t a_stride = round_up(block.K, kWidth);
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const int64_t rank = block.segments[s].rank, whole = rank / kWidth, rest = rank % kWidth;
    hidden += whole * M * kWidth;
    if (rest == 0) continue;
    const float* a = block.segments[s].shrink + whole * shrink_panel<Simd>(block.K);
    for (int64_t k = 0; dots<Simd>(rest) && k < block.K; k += kPass) {
      const int64_t depth = block.K - k < kPass ? block.K - k : kPass;
      for (int m = 0; m < M; m += kRows) {
        for (int64_t r = 0; r < rest; r += kDotRanks) {
          shrink_dots<Simd, T, kRows>(x + m * block.x_stride + k, block.x_stride,
                                      a + r * a_stride + k, a_stride, depth,
                                      hidden + m * kWidth + r);
        }
      }
    }
    hidden += M * kWidth;
  }
}

template <typename Simd, typename T, int M>
void delta_tile(const DeltaBlock& block, const T* x, T* y) {
  float* hidden = block.scratch;
  bool panels = false;  // of ranks, beside those along K
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const int64_t rank = block.segments[s].rank;
    panels = panels || rank > Simd::kWidth || !dots<Simd>(rank);
  }
  for (int64_t i = 0; i < M * block.padded_rank; ++i) hidden[i] = 0.0f;
  for (int64_t first = 0; panels && first < block.K; first += kDepth) {
    const int64_t depth = block.K - first < kDepth ? block.K - first : kDepth;
    if constexpr (std::is_same_v<T, float>) {
      shrink_tile<Simd, M>(block, x + first, block.x_stride, first, depth, hidden);
    } else {
      float* tile = hidden + M * block.padded_rank;
      load_tile<Simd, T, M>(x + first, block.x_stride, depth, tile);
      shrink_tile<Simd, M>(block, tile, kDepthStride, first, depth, hidden);
    }
  }
  if constexpr (kHasDots<Simd>) shrink_rests<Simd, T, M>(block, x, hidden);
  float* to = hidden;
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const int64_t size = M * round_up(block.segments[s].rank, Simd::kWidth);
    for (int64_t i = 0; i < size; ++i) to[i] *= block.segments[s].scale;
    to += size;
  }
  expand_rows<Simd, T, M>(hidden, block.segments, block.segment_count, block.N, y, block.y_stride,
                          y, block.y_stride);
}

template <typename Simd, typename T>
void lora_delta(const DeltaBlock& block) {
  constexpr int kTile = Simd::kTile, kThird = (Simd::kTile + 2) / 3;
  const T* x = static_cast<const T*>(block.x);
  T* y = static_cast<T*>(block.y);
  int64_t token = 0;
  for (; token + kTile <= block.tokens; token += kTile) {
    delta_tile<Simd, T, kTile>(block, x + token * block.x_stride, y + token * block.y_stride);
  }
  for (; token + kThird <= block.tokens; token += kThird) {
    delta_tile<Simd, T, kThird>(block, x + token * block.x_stride, y + token * block.y_stride);
  }
  for (; token < block.tokens; ++token) {
    delta_tile<Simd, T, 1>(block, x + token * block.x_stride, y + token * block.y_stride);
  }
}

}  // namespace cmlora::cpu
