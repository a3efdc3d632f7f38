#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/exp2.h"

namespace cmlora::cpu {

// count contiguous elements of out = x · gelu(gate).
struct GegluRun {
  void* out;
  const void* x;
  const void* gate;
  int64_t count;
};

// The same of d x = d out · gelu(gate) and d gate = d out · x · gelu'(gate).
struct GegluBackwardRun {
  void* dx;
  void* dgate;
  const void* dout;
  const void* x;
  const void* gate;
  int64_t count;
};

// Of the normal distribution at -|g|: exp(-g²/2), and the share that lies beyond.
template <typename Simd>
struct NormalTail {
  typename Simd::Reg size;  // |g|
  typename Simd::Reg density;
  typename Simd::Reg share;

  // share = exp(-a²/2) R(1 / (1 + p a/√2)) with a polynomial R of degree 8, fitted to an absolute
  // error of 5e-10.
  explicit NormalTail(typename Simd::Reg g) {
    constexpr float kP = 0.39f * 0.707106781f;
    size = Simd::max(Simd::sub(Simd::set(0.0f), g), g);  // in this order a NaN stays
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
    density = exp2_of_negative<Simd>(Simd::mul(square, Simd::set(-0.721347520f)));
    share = Simd::mul(density, r);
  }
};

// gelu(g) = max(g, 0) - |g| · Φ(-|g|), exact in both tails.
template <typename Simd>
typename Simd::Reg gelu(typename Simd::Reg g, const NormalTail<Simd>& tail) {
  return Simd::sub(Simd::max(Simd::set(0.0f), g), Simd::mul(tail.size, tail.share));
}

// gelu'(g) = Φ(g) + g exp(-g²/2) / √(2π), with Φ(g) = 1 - Φ(-|g|) or Φ(-|g|) by the sign of g.
template <typename Simd>
typename Simd::Reg gelu_slope(typename Simd::Reg g, const NormalTail<Simd>& tail) {
  const auto zero = Simd::set(0.0f), least = Simd::set(-1.0f);
  const auto steep = Simd::max(least, Simd::fma(Simd::set(1e38f), g, Simd::set(1.0f)));
  const auto sign = Simd::sub(zero, Simd::max(least, Simd::sub(zero, steep)));  // 1 at zero
  const auto share = Simd::sub(Simd::max(zero, sign), Simd::mul(sign, tail.share));
  return Simd::fma(Simd::mul(g, Simd::set(0.398942280f)), tail.density, share);
}

template <typename Simd, typename T>
void geglu_vector(const T* x, const T* gate, T* out) {
  const auto g = Simd::load(gate);
  Simd::store(out, Simd::mul(Simd::load(x), gelu<Simd>(g, NormalTail<Simd>(g))));
}

template <typename Simd, typename T>
void geglu_backward_vector(const T* x, const T* gate, const T* dout, T* dx, T* dgate) {
  const auto g = Simd::load(gate);
  const auto d = Simd::load(dout);
  const NormalTail<Simd> tail(g);
  Simd::store(dx, Simd::mul(d, gelu<Simd>(g, tail)));
  Simd::store(dgate, Simd::mul(Simd::mul(d, Simd::load(x)), gelu_slope<Simd>(g, tail)));
}

template <typename Simd, typename T>
void geglu(const GegluRun& run) {
  const T* x = static_cast<const T*>(run.x);
  const T* gate = static_cast<const T*>(run.gate);
  T* out = static_cast<T*>(run.out);
  int64_t i = 0;
  for (; i + Simd::kWidth <= run.count; i += Simd::kWidth) {
    geglu_vector<Simd>(x + i, gate + i, out + i);
  }
  if (i == run.count) return;
  T rest[3][Simd::kWidth] = {};
  for (int64_t j = 0; i + j < run.count; ++j) rest[0][j] = x[i + j], rest[1][j] = gate[i + j];
  geglu_vector<Simd>(rest[0], rest[1], rest[2]);
  for (int64_t j = 0; i + j < run.count; ++j) out[i + j] = rest[2][j];
}

template <typename Simd, typename T>
void geglu_backward(const GegluBackwardRun& run) {
  const T* x = static_cast<const T*>(run.x);
  const T* gate = static_cast<const T*>(run.gate);
  const T* dout = static_cast<const T*>(run.dout);
  T* dx = static_cast<T*>(run.dx);
  T* dgate = static_cast<T*>(run.dgate);
  int64_t i = 0;
  for (; i + Simd::kWidth <= run.count; i += Simd::kWidth) {
    geglu_backward_vector<Simd>(x + i, gate + i, dout + i, dx + i, dgate + i);
  }
  if (i == run.count) return;
  T rest[5][Simd::kWidth] = {};
  for (int64_t j = 0; i + j < run.count; ++j) {
    rest[0][j] = x[i + j], rest[1][j] = gate[i + j], rest[2][j] = dout[i + j];
  }
  geglu_backward_vector<Simd>(rest[0], rest[1], rest[2], rest[3], rest[4]);
  for (int64_t j = 0; i + j < run.count; ++j) dx[i + j] = rest[3][j], dgate[i + j] = rest[4][j];
}

}  // namespace cmlora::cpu
