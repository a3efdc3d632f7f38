#pragma once

#include "cpu/kernels.h"
#include "cpu/unroll.h"

// Register tiles of lora_delta_ and lora_fold, for any Simd and element type. Every sum runs in the
// same order whatever the tile, so a result depends neither on its neighbours nor on the threads.

namespace cmlora::cpu {

// Input features per pass: a tile of them stays in L1, and sums of so few lose no more to rounding
// than torch's own product does (512 of them lose twice that).
constexpr int64_t kDepth = 128;

// 16 more floats per row keep the rows of a tile from sharing cache sets.
constexpr int64_t kDepthStride = kDepth + 16;

static constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

template <typename Simd>
int64_t delta_scratch(int64_t padded_rank) {
  return Simd::kTile * (kDepthStride + 2 * padded_rank);
}

template <typename Simd, typename T>
void pack_shrink(const Matrix& a, int64_t rank, int64_t K, float* out) {
  constexpr int64_t kWidth = Simd::kWidth;
  const T* data = static_cast<const T*>(a.data);
  for (int64_t first = 0; first < rank; first += kWidth, out += K * kWidth) {
    const int64_t lanes = rank - first < kWidth ? rank - first : kWidth;
    // Blocks of k: both the reads along a row of `a` and the writes across lanes stay in L1.
    for (int64_t block = 0; block < K; block += 64) {
      const int64_t end = block + 64 < K ? block + 64 : K;
      for (int64_t lane = 0; lane < kWidth; ++lane) {
        const T* from = data + (first + lane) * a.row_stride;
        for (int64_t k = block; k < end; ++k) {
          out[k * kWidth + lane] = lane < lanes ? to_float(from[k * a.col_stride]) : 0.0f;
        }
      }
    }
  }
}

// m is [rank, columns].
template <typename Simd, typename T>
void pack_expand(const Matrix& m, int64_t rank, int64_t columns, float* out) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  const T* data = static_cast<const T*>(m.data);
  for (int64_t first = 0; first < columns; first += kPanel, out += rank * kPanel) {
    const int64_t count = columns - first < kPanel ? columns - first : kPanel;
    for (int64_t column = 0; column < kPanel; ++column) {
      const T* from = data + (first + column) * m.col_stride;
      for (int64_t r = 0; r < rank; ++r) {
        out[r * kPanel + column] = column < count ? to_float(from[r * m.row_stride]) : 0.0f;
      }
    }
  }
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

// hidden[M, stride] += x[M, depth] · Aᵀ for P vectors of ranks.
template <typename Simd, int M, int P>
void shrink(const float* x, const float* a, int64_t panel, int64_t depth, float* hidden,
            int64_t stride) {
  typename Simd::Reg sums[M][P];
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) sums[m][p] = Simd::set(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k, a += Simd::kWidth) {
    typename Simd::Reg ranks[P];
    CMLORA_UNROLL
    for (int p = 0; p < P; ++p) ranks[p] = Simd::load(a + p * panel);
    CMLORA_UNROLL
    for (int m = 0; m < M; ++m) {
      const auto value = Simd::set(x[m * kDepthStride + k]);
      CMLORA_UNROLL
      for (int p = 0; p < P; ++p) sums[m][p] = Simd::fma(value, ranks[p], sums[m][p]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) {
      float* to = hidden + m * stride + p * Simd::kWidth;
      Simd::store(to, Simd::add(Simd::load(to), sums[m][p]));
    }
  }
}

// out[M, 2W] = in[M, 2W] + Σ hidden[rank, M] · columns[rank, 2W], over all segments.
template <typename Simd, typename T, int M>
void expand(const float* hidden, const Segment* segments, int64_t count, int64_t panel, const T* in,
            int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int64_t kWidth = Simd::kWidth;
  typename Simd::Reg sums[M][2];
  for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = Simd::set(0.0f);
  for (int64_t s = 0; s < count; ++s) {
    const int64_t rank = segments[s].rank;
    const float* columns = segments[s].expand + panel * rank * 2 * kWidth;
    for (int64_t r = 0; r < rank; ++r, columns += 2 * kWidth, hidden += M) {
      const auto left = Simd::load(columns);
      const auto right = Simd::load(columns + kWidth);
      CMLORA_UNROLL
      for (int m = 0; m < M; ++m) {
        const auto value = Simd::set(hidden[m]);
        sums[m][0] = Simd::fma(value, left, sums[m][0]);
        sums[m][1] = Simd::fma(value, right, sums[m][1]);
      }
    }
  }
  for (int m = 0; m < M; ++m, in += in_stride, out += out_stride) {
    Simd::store(out, Simd::add(Simd::load(in), sums[m][0]));
    Simd::store(out + kWidth, Simd::add(Simd::load(in + kWidth), sums[m][1]));
  }
}

// All column panels of M rows; the last, partial one goes through a buffer of full width.
template <typename Simd, typename T, int M>
void expand_rows(const float* hidden, const Segment* segments, int64_t count, int64_t columns,
                 const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int64_t kPanel = 2 * Simd::kWidth;
  int64_t first = 0;
  for (; first + kPanel <= columns; first += kPanel) {
    expand<Simd, T, M>(hidden, segments, count, first / kPanel, in + first, in_stride, out + first,
                       out_stride);
  }
  const int64_t rest = columns - first;
  if (rest == 0) return;
  T buffer[M * kPanel] = {};
  for (int m = 0; m < M; ++m) {
    for (int64_t i = 0; i < rest; ++i) buffer[m * kPanel + i] = in[m * in_stride + first + i];
  }
  expand<Simd, T, M>(hidden, segments, count, first / kPanel, buffer, kPanel, buffer, kPanel);
  for (int m = 0; m < M; ++m) {
    for (int64_t i = 0; i < rest; ++i) out[m * out_stride + first + i] = buffer[m * kPanel + i];
  }
}

template <typename Simd, typename T, int M>
void delta_tile(const DeltaBlock& block, const T* x, T* y) {
  constexpr int64_t kWidth = Simd::kWidth;
  const int64_t stride = block.padded_rank;
  float* tile = block.scratch;
  float* hidden = tile + M * kDepthStride;  // [M, padded_rank]
  float* turned = hidden + M * stride;      // [rank, M], scaled
  for (int64_t i = 0; i < M * stride; ++i) hidden[i] = 0.0f;
  for (int64_t first = 0; first < block.K; first += kDepth) {
    const int64_t depth = block.K - first < kDepth ? block.K - first : kDepth;
    load_tile<Simd, T, M>(x + first, block.x_stride, depth, tile);
    float* to = hidden;
    for (int64_t s = 0; s < block.segment_count; ++s) {
      const int64_t panels = round_up(block.segments[s].rank, kWidth) / kWidth;
      const int64_t panel = block.K * kWidth;
      const float* a = block.segments[s].shrink + first * kWidth;
      int64_t p = 0;
      for (; p + 2 <= panels; p += 2, a += 2 * panel, to += 2 * kWidth) {
        shrink<Simd, M, 2>(tile, a, panel, depth, to, stride);
      }
      if (p < panels) shrink<Simd, M, 1>(tile, a, panel, depth, to, stride), to += kWidth;
    }
  }
  const float* from = hidden;
  float* to = turned;
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const Segment& segment = block.segments[s];
    for (int64_t r = 0; r < segment.rank; ++r, to += M) {
      for (int m = 0; m < M; ++m) to[m] = segment.scale * from[m * stride + r];
    }
    from += round_up(segment.rank, kWidth);
  }
  expand_rows<Simd, T, M>(turned, block.segments, block.segment_count, block.N, y, block.y_stride,
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

template <typename Simd, typename T, int M>
void fold_tile(const FoldBlock& block, int64_t first) {
  const T* b = static_cast<const T*>(block.b.data) + first * block.b.row_stride;
  float* to = block.scratch;  // [rank, M]
  for (int64_t s = 0; s < block.segment_count; ++s) {
    const Segment& segment = block.segments[s];
    for (int64_t r = 0; r < segment.rank; ++r, to += M) {
      const T* from = b + (segment.first + r) * block.b.col_stride;
      for (int m = 0; m < M; ++m) to[m] = segment.scale * to_float(from[m * block.b.row_stride]);
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
