#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace cmlora {

// Complex numbers kept as two arrays.
template <typename Real>
struct Complexes {
  Real* re;
  Real* im;
};

// Roots of unity exp(-2πi j / n), j = 0 .. n - 1.
template <typename Real, typename Index>
struct Roots {
  const Real* re;
  const Real* im;
  Index n;
};

// Functions are static: files built for different instruction sets must not share them.

// A Stockham transform of vectors of `length` numbers takes one stage per factor p of n, with
// m = (size of the stage) / p and ω of order m p:
//   out[p k + r] = Σ_j in[k + m j] · ω^(r (k + m j)),  k < m,  r < p.
// The functions below do one k, for the elements begin <= i < end of the vectors.
template <typename Real, typename Index>
static inline CMLORA_HOST_DEVICE void fft_factor(const Complexes<Real>& in,
                                                 const Complexes<Real>& out,
                                                 const Roots<Real, Index>& roots, Index p, Index m,
                                                 Index length, Index k, Index begin, Index end) {
  const Index step = roots.n / (m * p);
  for (Index r = 0; r < p; ++r) {
    Real* re = out.re + (p * k + r) * length;
    Real* im = out.im + (p * k + r) * length;
    for (Index i = begin; i < end; ++i) re[i] = im[i] = Real(0);
    for (Index j = 0; j < p; ++j) {
      const Index root = r * (k + m * j) * step % roots.n;
      const Real c = roots.re[root], s = roots.im[root];
      const Real* a = in.re + (k + m * j) * length;
      const Real* b = in.im + (k + m * j) * length;
      for (Index i = begin; i < end; ++i) {
        re[i] += a[i] * c - b[i] * s;
        im[i] += a[i] * s + b[i] * c;
      }
    }
  }
}

// The same for p = 4, where ω^(m j r) only swaps and negates.
template <typename Real, typename Index>
static inline CMLORA_HOST_DEVICE void fft_factor4(const Complexes<Real>& in,
                                                  const Complexes<Real>& out,
                                                  const Roots<Real, Index>& roots, Index m,
                                                  Index length, Index k, Index begin, Index end) {
  const Index step = roots.n / (m * 4);
  const Real c1 = roots.re[k * step], s1 = roots.im[k * step];
  const Real c2 = roots.re[2 * k * step], s2 = roots.im[2 * k * step];
  const Real c3 = roots.re[3 * k * step], s3 = roots.im[3 * k * step];
  const Real* a = in.re + k * length;
  const Real* b = in.im + k * length;
  Real* re = out.re + 4 * k * length;
  Real* im = out.im + 4 * k * length;
  const Index q = m * length;
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#pragma GCC ivdep
#endif
  for (Index i = begin; i < end; ++i) {
    const Real even_re = a[i] + a[i + 2 * q], even_im = b[i] + b[i + 2 * q];
    const Real diff_re = a[i] - a[i + 2 * q], diff_im = b[i] - b[i + 2 * q];
    const Real odd_re = a[i + q] + a[i + 3 * q], odd_im = b[i + q] + b[i + 3 * q];
    const Real turn_re = b[i + q] - b[i + 3 * q], turn_im = a[i + 3 * q] - a[i + q];
    const Real x1 = diff_re + turn_re, y1 = diff_im + turn_im;
    const Real x2 = even_re - odd_re, y2 = even_im - odd_im;
    const Real x3 = diff_re - turn_re, y3 = diff_im - turn_im;
    re[i] = even_re + odd_re;
    im[i] = even_im + odd_im;
    re[i + length] = x1 * c1 - y1 * s1;
    im[i + length] = x1 * s1 + y1 * c1;
    re[i + 2 * length] = x2 * c2 - y2 * s2;
    im[i + 2 * length] = x2 * s2 + y2 * c2;
    re[i + 3 * length] = x3 * c3 - y3 * s3;
    im[i + 3 * length] = x3 * s3 + y3 * c3;
  }
}

template <typename Real, typename Index>
static inline CMLORA_HOST_DEVICE void fft_stage(const Complexes<Real>& in,
                                                const Complexes<Real>& out,
                                                const Roots<Real, Index>& roots, Index p, Index m,
                                                Index length, Index k, Index begin, Index end) {
  if (p == 4) {
    fft_factor4(in, out, roots, m, length, k, begin, end);
  } else {
    fft_factor(in, out, roots, p, m, length, k, begin, end);
  }
}

template <typename Index>
static inline CMLORA_HOST_DEVICE Index next_factor(Index n) {
  if (n % 4 == 0) return 4;
  for (Index p = 2; p * p <= n; ++p) {
    if (n % p == 0) return p;
  }
  return n;
}

// Transforms data [roots.n, batch] along its first axis; the result lies in the array returned,
// which is `data` or `work`. Any size; a prime factor p costs n · p.
static inline Complexes<double> fft(Complexes<double> data, Complexes<double> work,
                                    const Roots<double, int64_t>& roots, int64_t batch) {
  int64_t size = roots.n, length = batch;
  while (size > 1) {
    const int64_t p = next_factor(size);
    size /= p;
    for (int64_t k = 0; k < size; ++k) {
      fft_stage(data, work, roots, p, size, length, k, int64_t(0), length);
    }
    const Complexes<double> result = work;
    work = data;
    data = result;
    length *= p;
  }
  return data;
}

}  // namespace cmlora
