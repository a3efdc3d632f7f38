#pragma once

#include <cstdint>

namespace cmlora {

// Complex numbers kept as two arrays.
struct Complexes {
  double* re;
  double* im;
};

// Roots of unity exp(-2πi j / n), j = 0 .. n - 1.
struct Roots {
  const double* re;
  const double* im;
  int64_t n;
};

// Functions are static: files built for different instruction sets must not share them.

// One factor p of a Stockham transform of vectors of `length` numbers, m = (size of this stage)/p:
// out[p k + r] = Σ_j in[k + m j] · ω^(r (k + m j)), ω of order m p. step = roots.n / (m p).
static inline void fft_factor(const Complexes& in, const Complexes& out, const Roots& roots,
                              int64_t p, int64_t m, int64_t length) {
  const int64_t step = roots.n / (m * p);
  for (int64_t k = 0; k < m; ++k) {
    for (int64_t r = 0; r < p; ++r) {
      double* re = out.re + (p * k + r) * length;
      double* im = out.im + (p * k + r) * length;
      for (int64_t i = 0; i < length; ++i) re[i] = im[i] = 0.0;
      for (int64_t j = 0; j < p; ++j) {
        const int64_t root = r * (k + m * j) * step % roots.n;
        const double c = roots.re[root], s = roots.im[root];
        const double* a = in.re + (k + m * j) * length;
        const double* b = in.im + (k + m * j) * length;
        for (int64_t i = 0; i < length; ++i) {
          re[i] += a[i] * c - b[i] * s;
          im[i] += a[i] * s + b[i] * c;
        }
      }
    }
  }
}

// The same for p = 4, where ω^(m j r) only swaps and negates.
static inline void fft_factor4(const Complexes& in, const Complexes& out, const Roots& roots,
                               int64_t m, int64_t length) {
  const int64_t step = roots.n / (m * 4);
  for (int64_t k = 0; k < m; ++k) {
    const double c1 = roots.re[k * step], s1 = roots.im[k * step];
    const double c2 = roots.re[2 * k * step], s2 = roots.im[2 * k * step];
    const double c3 = roots.re[3 * k * step], s3 = roots.im[3 * k * step];
    const double* a = in.re + k * length;
    const double* b = in.im + k * length;
    double* re = out.re + 4 * k * length;
    double* im = out.im + 4 * k * length;
    const int64_t q = m * length;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (int64_t i = 0; i < length; ++i) {
      const double even_re = a[i] + a[i + 2 * q], even_im = b[i] + b[i + 2 * q];
      const double diff_re = a[i] - a[i + 2 * q], diff_im = b[i] - b[i + 2 * q];
      const double odd_re = a[i + q] + a[i + 3 * q], odd_im = b[i + q] + b[i + 3 * q];
      const double turn_re = b[i + q] - b[i + 3 * q], turn_im = a[i + 3 * q] - a[i + q];
      const double x1 = diff_re + turn_re, y1 = diff_im + turn_im;
      const double x2 = even_re - odd_re, y2 = even_im - odd_im;
      const double x3 = diff_re - turn_re, y3 = diff_im - turn_im;
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
}

static inline int64_t next_factor(int64_t n) {
  if (n % 4 == 0) return 4;
  for (int64_t p = 2; p * p <= n; ++p) {
    if (n % p == 0) return p;
  }
  return n;
}

// Transforms data [roots.n, batch] along its first axis; the result lies in the array returned,
// which is `data` or `work`. Any size; a prime factor p costs n · p.
static inline Complexes fft(Complexes data, Complexes work, const Roots& roots, int64_t batch) {
  int64_t size = roots.n, length = batch;
  while (size > 1) {
    const int64_t p = next_factor(size);
    size /= p;
    if (p == 4) {
      fft_factor4(data, work, roots, size, length);
    } else {
      fft_factor(data, work, roots, p, size, length);
    }
    const Complexes result = work;
    work = data;
    data = result;
    length *= p;
  }
  return data;
}

}  // namespace cmlora
