#pragma once

#include <cmath>

#include "common/dtype.h"
#include "cpu/spectrum_plan.h"

// radial_amplitude of one image. In double: float32 latents need no error analysis then, and the
// logarithm of a small amplitude keeps its digits. Sums run in one fixed order.

namespace cmlora::cpu {

// One image: latents [C, H, W] to a profile of plan.bins values and the mean of its high band.
struct SpectrumImage {
  const void* latents;
  int64_t C;
  int64_t c_stride;
  int64_t h_stride;
  int64_t first_bin;
  bool log;
  float* mean;
  float* profile;
  const SpectrumPlan* plan;
  double* scratch;  // plan.scratch_size doubles
};

// Channel mean; columns c and c + pairs become the parts of one complex column.
template <typename Simd, typename T>
void load_columns(const SpectrumImage& image, Complexes<double> to) {
  const SpectrumPlan& plan = *image.plan;
  const T* latents = static_cast<const T*>(image.latents);
  for (int64_t h = 0; h < plan.H; ++h) {
    double* re = to.re + h * plan.pairs;
    double* im = to.im + h * plan.pairs;
    for (int64_t c = 0; c < plan.pairs; ++c) re[c] = im[c] = 0.0;
    for (int64_t channel = 0; channel < image.C; ++channel) {
      const T* from = latents + channel * image.c_stride + h * image.h_stride;
      for (int64_t c = 0; c < plan.pairs; ++c) re[c] += to_float(from[c]);
      for (int64_t c = plan.pairs; c < plan.W; ++c) im[c - plan.pairs] += to_float(from[c]);
    }
    const double scale = 1.0 / double(image.C);
    for (int64_t c = 0; c < plan.pairs; ++c) re[c] *= scale, im[c] *= scale;
  }
}

// Takes the spectra of two real columns apart, X and Y of Z = X + iY, and turns them:
// from [H, pairs] to [W, half].
template <typename Simd>
void split_pairs(const SpectrumPlan& plan, Complexes<double> from, Complexes<double> to) {
  for (int64_t k = 0; k < plan.half; ++k) {
    const int64_t mirror = k == 0 ? 0 : plan.H - k;
    for (int64_t c = 0; c < plan.pairs; ++c) {
      const double p = from.re[k * plan.pairs + c], q = from.im[k * plan.pairs + c];
      const double u = from.re[mirror * plan.pairs + c], v = from.im[mirror * plan.pairs + c];
      to.re[c * plan.half + k] = 0.5 * (p + u);
      to.im[c * plan.half + k] = 0.5 * (q - v);
      if (c + plan.pairs == plan.W) continue;  // the padding of an odd width
      to.re[(c + plan.pairs) * plan.half + k] = 0.5 * (q + v);
      to.im[(c + plan.pairs) * plan.half + k] = 0.5 * (u - p);
    }
  }
}

// sums[bin] = mean amplitude per radius; `spectrum` is overwritten.
template <typename Simd>
void bin_amplitudes(const SpectrumImage& image, Complexes<double> spectrum, double* sums) {
  const SpectrumPlan& plan = *image.plan;
  const int64_t cells = plan.W * plan.half;
  double* amplitude = spectrum.re;
  for (int64_t i = 0; i < cells; ++i) {
    amplitude[i] = std::sqrt(spectrum.re[i] * spectrum.re[i] + spectrum.im[i] * spectrum.im[i]);
  }
  if (image.log) {
    for (int64_t i = 0; i < cells; ++i) amplitude[i] = std::log(amplitude[i] + 1e-8);
  }
  for (int64_t r = 0; r < plan.bins; ++r) sums[r] = 0.0;
  for (int64_t x = 0; x < plan.W; ++x) {
    const int32_t* bin = plan.bin.data() + x * plan.half;
    const double* row = amplitude + x * plan.half;
    sums[bin[0]] += row[0];
    const int64_t inner = (plan.H - 1) / 2;  // the last ky that has a mirror image
    for (int64_t k = 1; k <= inner; ++k) sums[bin[k]] += 2.0 * row[k];
    if (inner + 1 < plan.half) sums[bin[inner + 1]] += row[inner + 1];
  }
  for (int64_t r = 0; r < plan.bins; ++r) sums[r] /= plan.count[r];
}

template <typename Simd, typename T>
void radial_amplitude(const SpectrumImage& image) {
  const SpectrumPlan& plan = *image.plan;
  const int64_t size = (plan.scratch_size - plan.bins) / 4;
  double* scratch = image.scratch;
  Complexes<double> first{scratch, scratch + size}, second{scratch + 2 * size, scratch + 3 * size};
  double* profile = scratch + 4 * size;

  load_columns<Simd, T>(image, first);
  const Complexes<double> columns = fft(first, second, plan.h_roots(), plan.pairs);
  const Complexes<double> other = columns.re == first.re ? second : first;
  split_pairs<Simd>(plan, columns, other);
  bin_amplitudes<Simd>(image, fft(other, columns, plan.w_roots(), plan.half), profile);

  double top = profile[0];
  for (int64_t r = 1; r < plan.bins; ++r) top = top < profile[r] ? profile[r] : top;
  double sum = 0.0;
  for (int64_t r = 0; r < plan.bins; ++r) {
    const double value = profile[r] / top;
    image.profile[r] = float(value);
    if (r >= image.first_bin) sum += value;
  }
  *image.mean = float(sum / double(image.first_bin < plan.bins ? plan.bins - image.first_bin : 0));
}

}  // namespace cmlora::cpu
