#pragma once

#include "cpu/lora_kernels.h"

// lora_fold: a weight's features take the place of tokens, B that of the hidden values.

namespace cmlora::cpu {

// Consecutive output features of one folded weight: out = w + Σ scale · B A.
struct FoldBlock {
  const void* w;
  void* out;
  int64_t w_stride;
  int64_t out_stride;
  Matrix b;       // first of the features
  int64_t count;  // features
  int64_t K;
  const Segment* segments;
  int64_t segment_count;
  float* scratch;  // delta_scratch(padded_rank) floats
};

template <typename Simd, typename T, int M>
void fold_tile(const FoldBlock& block, int64_t first) {
  const T* b = static_cast<const T*>(block.b.data) + first * block.b.row_stride;
  constexpr int64_t kWidth = Simd::kWidth;
  float* to = block.scratch;  // [padded_rank / W, M, W]
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const Segment& segment = block.segments[s];
    for (int64_t r = 0; r < segment.rank; r += kWidth, to += M * kWidth) {
      const int64_t ranks = segment.rank - r < kWidth ? segment.rank - r : kWidth;
      for (int m = 0; m < M; ++m) {
        const T* from = b + m * block.b.row_stride + (segment.first + r) * block.b.col_stride;
        for (int64_t i = 0; i < ranks; ++i) {
          to[m * kWidth + i] = segment.scale * to_float(from[i * block.b.col_stride]);
        }
      }
    }
  }
  expand_rows<Simd, T, M>(block.scratch, block.segments, block.segment_count, block.K,
                          static_cast<const T*>(block.w) + first * block.w_stride, block.w_stride,
                          static_cast<T*>(block.out) + first * block.out_stride, block.out_stride);
}

template <typename Simd, typename T>
void lora_fold(const FoldBlock& block) {
  int64_t n = 0;
  for (; n + Simd::kTile <= block.count; n += Simd::kTile)
    fold_tile<Simd, T, Simd::kTile>(block, n);
  for (; n < block.count; ++n) fold_tile<Simd, T, 1>(block, n);
}

}  // namespace cmlora::cpu
