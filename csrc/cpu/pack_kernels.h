#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/unroll.h"
#include "ops/row_table.h"

// The layout of packed adapters, for any Simd and element type.

namespace cmlora::cpu {

// One adapter of a row, packed to float32. W is the vector width.
struct Segment {
  const float* shrink;  // A in panels of W ranks, see pack_kernels.h
  const float* expand;  // the other factor as [ceil(columns / 2W), rank, 2W], missing columns zero
  int64_t first;        // first rank in the slabs
  int64_t rank;
  float scale;
};

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

// to[j, i] = from[i, j] for W x W numbers, by rounds of a perfect shuffle.
template <typename Simd, typename T>
void turn_square(const T* from, int64_t from_stride, float* to, int64_t to_stride) {
  constexpr int kWidth = Simd::kWidth, kHalf = kWidth / 2;
  typename Simd::Reg square[kWidth], shuffled[kWidth];
  CMLORA_UNROLL
  for (int i = 0; i < kWidth; ++i) square[i] = Simd::load(from + i * from_stride);
  for (int round = 1; round < kWidth; round *= 2) {
    CMLORA_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      shuffled[2 * i] = Simd::mix_low(square[i], square[i + kHalf]);
      shuffled[2 * i + 1] = Simd::mix_high(square[i], square[i + kHalf]);
    }
    CMLORA_UNROLL
    for (int i = 0; i < kWidth; ++i) square[i] = shuffled[i];
  }
  CMLORA_UNROLL
  for (int i = 0; i < kWidth; ++i) Simd::store(to + i * to_stride, square[i]);
}

// to[j, i] = from[i, j] for at most W rows and any number of columns; missing rows are zero.
template <typename Simd, typename T>
void turn(const T* from, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t columns,
          float* to, int64_t to_stride) {
  constexpr int64_t kWidth = Simd::kWidth;
  int64_t j = 0;
  for (; rows == kWidth && col_stride == 1 && j + kWidth <= columns; j += kWidth) {
    turn_square<Simd, T>(from + j, row_stride, to + j * to_stride, to_stride);
  }
  for (; j < columns; ++j) {
    const T* column = from + j * col_stride;
    for (int64_t i = 0; i < kWidth; ++i) {
      to[j * to_stride + i] = i < rows ? to_float(column[i * row_stride]) : 0.0f;
    }
  }
}

// One panel of at most W ranks: [K, W], or along K, each rank filled up to whole vectors.
template <typename Simd, typename T>
void pack_shrink(const Matrix& a, int64_t ranks, int64_t K, float* out) {
  const T* data = static_cast<const T*>(a.data);
  if (!dots<Simd>(ranks)) {
    return turn<Simd, T>(data, a.row_stride, a.col_stride, ranks, K, out, Simd::kWidth);
  }
  const int64_t depth = round_up(K, Simd::kWidth);
  for (int64_t rank = 0; rank < round_up(ranks, kDotRanks); ++rank, out += depth) {
    const T* from = data + rank * a.row_stride;
    const int64_t filled = rank < ranks ? K : 0;
    for (int64_t k = 0; k < filled; ++k) out[k] = to_float(from[k * a.col_stride]);
    for (int64_t k = filled; k < depth; ++k) out[k] = 0.0f;
  }
}

// One panel of at most 2W columns of m [rank, columns]: [rank, 2W].
template <typename Simd, typename T>
void pack_expand(const Matrix& m, int64_t rank, int64_t columns, float* out) {
  constexpr int64_t kWidth = Simd::kWidth;
  const T* data = static_cast<const T*>(m.data);
  for (int64_t first = 0; first < 2 * kWidth; first += kWidth) {
    const int64_t left = columns < first ? 0 : columns - first < kWidth ? columns - first : kWidth;
    turn<Simd, T>(data + first * m.col_stride, m.col_stride, m.row_stride, left, rank, out + first,
                  2 * kWidth);
  }
}

}  // namespace cmlora::cpu
