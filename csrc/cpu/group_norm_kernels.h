#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/exp2.h"

namespace cmlora::cpu {

// Tokens whose channels' means and squares are taken at once, at most.
constexpr int64_t kMomentTokens = 32;

// Mean and sum of squared differences over `tokens` tokens of each of C channels.
struct MomentsRun {
  const void* x;
  int64_t stride;  // of tokens
  int64_t tokens;
  int64_t C;
  float* mean;
  float* squares;
};

// out[t] = silu?(x[t] · scale + offset) for `tokens` tokens of C channels.
struct NormalizeRun {
  void* out;  // contiguous
  const void* x;
  int64_t stride;  // of the tokens of x
  int64_t tokens;
  int64_t C;
  const float* scale;
  const float* offset;
  bool silu;
};

// Mean and sum of squared differences of W channels over the tokens of a stretch.
template <typename Simd, typename T>
void moments_of(const T* x, int64_t stride, int64_t tokens, float* mean, float* squares) {
  auto sum = Simd::set(0.0f);
  for (int64_t t = 0; t < tokens; ++t) sum = Simd::add(sum, Simd::load(x + t * stride));
  const auto middle = Simd::mul(sum, Simd::set(1.0f / float(tokens)));
  auto total = Simd::set(0.0f);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto away = Simd::sub(Simd::load(x + t * stride), middle);
    total = Simd::fma(away, away, total);
  }
  Simd::store(mean, middle);
  Simd::store(squares, total);
}

template <typename Simd, typename T>
void moments(const MomentsRun& run) {
  constexpr int64_t kWidth = Simd::kWidth;
  const T* x = static_cast<const T*>(run.x);
  int64_t c = 0;
  for (; c + kWidth <= run.C; c += kWidth) {
    moments_of<Simd, T>(x + c, run.stride, run.tokens, run.mean + c, run.squares + c);
  }
  if (c == run.C) return;
  T rest[kMomentTokens * kWidth] = {};
  float mean[kWidth], squares[kWidth];
  for (int64_t t = 0; t < run.tokens; ++t) {
    for (int64_t i = c; i < run.C; ++i) rest[t * kWidth + i - c] = x[t * run.stride + i];
  }
  moments_of<Simd, T>(rest, kWidth, run.tokens, mean, squares);
  for (int64_t i = c; i < run.C; ++i) run.mean[i] = mean[i - c], run.squares[i] = squares[i - c];
}

// y σ(y), with exponentials of numbers <= 0 alone.
template <typename Simd>
typename Simd::Reg silu(typename Simd::Reg y) {
  const auto zero = Simd::set(0.0f);
  const auto negative = Simd::max(zero, Simd::sub(zero, y));
  const auto positive = Simd::max(zero, y);  // in this order a NaN stays
  const auto size = Simd::add(positive, negative);
  const auto e = exp2_of_negative<Simd>(Simd::mul(size, Simd::set(-1.44269504f)));
  const auto value = Simd::sub(positive, Simd::mul(negative, e));
  return Simd::div(value, Simd::add(Simd::set(1.0f), e));
}

template <typename Simd, typename T>
void normalize(const NormalizeRun& run) {
  constexpr int64_t kWidth = Simd::kWidth;
  const T* x = static_cast<const T*>(run.x);
  T* out = static_cast<T*>(run.out);
  const auto apply = [&](const T* from, const float* scale, const float* offset, T* to) {
    const auto y = Simd::fma(Simd::load(from), Simd::load(scale), Simd::load(offset));
    Simd::store(to, run.silu ? silu<Simd>(y) : y);
  };
  for (int64_t t = 0; t < run.tokens; ++t, x += run.stride, out += run.C) {
    int64_t c = 0;
    for (; c + kWidth <= run.C; c += kWidth) {
      apply(x + c, run.scale + c, run.offset + c, out + c);
    }
    if (c == run.C) continue;
    T rest[2][kWidth] = {};
    float factors[2][kWidth] = {};
    for (int64_t i = c; i < run.C; ++i) {
      rest[0][i - c] = x[i];
      factors[0][i - c] = run.scale[i], factors[1][i - c] = run.offset[i];
    }
    apply(rest[0], factors[0], factors[1], rest[1]);
    for (int64_t i = c; i < run.C; ++i) out[i] = rest[1][i - c];
  }
}

}  // namespace cmlora::cpu
