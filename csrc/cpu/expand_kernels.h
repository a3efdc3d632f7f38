#pragma once

#include "cpu/pack_kernels.h"

// The second product of lora_delta_ and lora_fold.

namespace cmlora::cpu {

// Input features per pass: a tile of them stays in L1, and sums of so few lose no more to rounding
// than torch's own product does (512 of them lose twice that).
constexpr int64_t kDepth = 128;

template <typename Simd, int M>
void add_partial(const float* partial, typename Simd::Reg (&sums)[M][2]) {
  CMLORA_UNROLL
  for (int m = 0; m < M; ++m, partial += 2 * Simd::kWidth) {
    sums[m][0] = Simd::add(Simd::load(partial), sums[m][0]);
    sums[m][1] = Simd::add(Simd::load(partial + Simd::kWidth), sums[m][1]);
  }
}

// Moves the sums to `partial`, onto what it holds already if `flushed`.
template <typename Simd, int M>
void flush(typename Simd::Reg (&sums)[M][2], float* partial, bool flushed) {
  if (flushed) add_partial<Simd, M>(partial, sums);
  CMLORA_UNROLL
  for (int m = 0; m < M; ++m, partial += 2 * Simd::kWidth) {
    Simd::store(partial, sums[m][0]);
    Simd::store(partial + Simd::kWidth, sums[m][1]);
    sums[m][0] = sums[m][1] = Simd::set(0.0f);
  }
}

// out[M, 2W] = in[M, 2W] + Σ hidden · columns[rank, 2W], over all segments.
template <typename Simd, typename T, int M>
void expand(const float* hidden, const Segment* segments, int64_t count, int64_t panel, const T* in,
            int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int64_t kWidth = Simd::kWidth, kPanel = 2 * kWidth;
  constexpr int64_t kLine = 64 / sizeof(T);
  typename Simd::Reg sums[M][2];
  CMLORA_UNROLL
  for (int m = 0; m < M; ++m) {
    sums[m][0] = sums[m][1] = Simd::set(0.0f);
    for (int64_t i = 0; i < kPanel; i += kLine) {  // the panel after this one
      __builtin_prefetch(in + m * in_stride + kPanel + i);
    }
  }
  float partial[M * kPanel];  // sums of kDepth ranks each, for the sake of rounding
  int64_t pending = 0;
  bool flushed = false;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t rank = segments[s].rank;
    const float* columns = segments[s].expand + panel * rank * kPanel;
    for (int64_t first = 0; first < rank; first += kWidth, hidden += M * kWidth) {
      const int64_t ranks = rank - first < kWidth ? rank - first : kWidth;
      for (int64_t r = 0; r < ranks; ++r, columns += kPanel) {
        const auto left = Simd::load(columns);
        const auto right = Simd::load(columns + kWidth);
        CMLORA_UNROLL
        for (int m = 0; m < M; ++m) {
          const auto value = Simd::set(hidden[m * kWidth + r]);
          sums[m][0] = Simd::fma(value, left, sums[m][0]);
          sums[m][1] = Simd::fma(value, right, sums[m][1]);
        }
      }
      pending += ranks;
      if (pending < kDepth) continue;
      flush<Simd, M>(sums, partial, flushed);
      pending = 0;
      flushed = true;
    }
  }
  if (flushed) add_partial<Simd, M>(partial, sums);
  CMLORA_UNROLL
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

}  // namespace cmlora::cpu
