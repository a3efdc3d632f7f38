#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace cmlora::cpu {

// count contiguous elements of out = Σ_j weights[j] · noise[0][j], guided with noise[1] too.
struct CombineRun {
  void* out;
  const void* const* noise;  // [J], guided [2, J]
  const float* weights;      // [J], weight_stride apart
  int64_t weight_stride;
  int64_t J;
  int64_t count;
  bool guided;
  float guidance_scale;
};

// One vector at `offset` of the weighted sum over J.
template <typename Simd, typename T>
typename Simd::Reg weighted_sum(const CombineRun& run, const void* const* noise, int64_t offset) {
  auto sum = Simd::set(0.0f);
  const float* weight = run.weights;
  for (int64_t j = 0; j < run.J; ++j, weight += run.weight_stride) {
    const auto value = Simd::load(static_cast<const T*>(noise[j]) + offset);
    sum = Simd::fma(Simd::set(*weight), value, sum);
  }
  return sum;
}

template <typename Simd, typename T>
void combine(const CombineRun& run) {
  T* out = static_cast<T*>(run.out);
  int64_t i = 0;
  for (; i + Simd::kWidth <= run.count; i += Simd::kWidth) {
    auto sum = weighted_sum<Simd, T>(run, run.noise, i);
    if (run.guided) {
      const auto other = weighted_sum<Simd, T>(run, run.noise + run.J, i);
      sum = Simd::fma(Simd::set(run.guidance_scale), Simd::sub(other, sum), sum);
    }
    Simd::store(out + i, sum);
  }
  for (; i < run.count; ++i) {
    float sums[2] = {0.0f, 0.0f};
    for (int part = 0; part < (run.guided ? 2 : 1); ++part) {
      for (int64_t j = 0; j < run.J; ++j) {
        const T* from = static_cast<const T*>(run.noise[part * run.J + j]);
        const float weight = run.weights[j * run.weight_stride];
        sums[part] += weight * to_float(from[i]);
      }
    }
    const float guided = sums[0] + run.guidance_scale * (sums[1] - sums[0]);
    from_float(run.guided ? guided : sums[0], out + i);
  }
}

}  // namespace cmlora::cpu
