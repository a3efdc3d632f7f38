#pragma once

#include "cpu/exp2.h"
#include "cpu/kernels.h"

namespace cmlora::cpu {

// gelu(g) = max(g, 0) - |g| · Φ(-|g|), exact in both tails. Φ(-a) = exp(-a²/2) R(1 / (1 + p a/√2))
// with a polynomial R of degree 8, fitted to an absolute error of 5e-10.
template <typename Simd>
typename Simd::Reg gelu(typename Simd::Reg g) {
  constexpr float kP = 0.39f * 0.707106781f;
  const auto zero = Simd::set(0.0f);
  const auto size = Simd::max(Simd::sub(zero, g), g);  // in this order a NaN stays
  const auto one = Simd::set(1.0f);
  const auto u = Simd::div(one, Simd::fma(Simd::set(kP), size, one));
  auto r = Simd::set(0.042276788f);
  r = Simd::fma(r, u, Simd::set(-0.240765713f));
  r = Simd::fma(r, u, Simd::set(0.470702221f));
  r = Simd::fma(r, u, Simd::set(-0.340505643f));
  r = Simd::fma(r, u, Simd::set(0.309379597f));
  r = Simd::fma(r, u, Simd::set(0.025576915f));
  r = Simd::fma(r, u, Simd::set(0.124515525f));
  r = Simd::fma(r, u, Simd::set(0.108820310f));
  r = Simd::mul(r, u);
  const auto square = Simd::mul(size, size);
  const auto tail = exp2_of_negative<Simd>(Simd::mul(square, Simd::set(-0.721347520f)));
  return Simd::sub(Simd::max(zero, g), Simd::mul(size, Simd::mul(tail, r)));
}

template <typename Simd, typename T>
void geglu(const GegluRun& run) {
  const T* x = static_cast<const T*>(run.x);
  const T* gate = static_cast<const T*>(run.gate);
  T* out = static_cast<T*>(run.out);
  int64_t i = 0;
  for (; i + Simd::kWidth <= run.count; i += Simd::kWidth) {
    Simd::store(out + i, Simd::mul(Simd::load(x + i), gelu<Simd>(Simd::load(gate + i))));
  }
  if (i == run.count) return;
  T rest[3][Simd::kWidth] = {};
  for (int64_t j = 0; i + j < run.count; ++j) rest[0][j] = x[i + j], rest[1][j] = gate[i + j];
  Simd::store(rest[2], Simd::mul(Simd::load(rest[0]), gelu<Simd>(Simd::load(rest[1]))));
  for (int64_t j = 0; i + j < run.count; ++j) out[i + j] = rest[2][j];
}

}  // namespace cmlora::cpu
