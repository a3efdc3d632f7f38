#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/fft.h"

namespace cmlora::cpu {

// Tables for the spectra of images of one size; the half ky <= H/2 stands for the whole.
struct SpectrumPlan {
  SpectrumPlan(int64_t H, int64_t W);

  Roots<double, int64_t> h_roots() const { return {h_cos.data(), h_sin.data(), H}; }
  Roots<double, int64_t> w_roots() const { return {w_cos.data(), w_sin.data(), W}; }

  int64_t H;
  int64_t W;
  int64_t half;          // H / 2 + 1
  int64_t pairs;         // (W + 1) / 2 pairs of real columns
  int64_t bins;          // integer radii
  int64_t scratch_size;  // doubles that one image needs
  std::vector<double> h_cos, h_sin, w_cos, w_sin;
  std::vector<int32_t> bin;   // [W, half]
  std::vector<double> count;  // [bins] cells of the whole spectrum
};

// The plan of a size, made at its first use; the last 16 sizes are kept.
std::shared_ptr<const SpectrumPlan> spectrum_plan(int64_t H, int64_t W);

}  // namespace cmlora::cpu
