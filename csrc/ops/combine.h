#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// out[g, b] = Σ_j weights[j, b] · noise[g, j, b]; guided: out[b] = out_0 + s · (out_1 - out_0).
struct Combine {
  void* out;             // [G, B, C, H, W], guided [B, C, H, W], last dimension contiguous
  const void* noise;     // [G, J, B, C, H, W], last dimension contiguous
  const float* weights;  // [J, B], per pixel [J, B, H, W], contiguous
  int64_t G;
  int64_t J;
  int64_t B;
  int64_t C;
  int64_t H;
  int64_t W;
  int64_t out_strides[4];    // of G (0 when guided), B, C, H
  int64_t noise_strides[5];  // of G, J, B, C, H
  bool per_pixel;
  bool guided;
  float guidance_scale;
  DType dtype;
};

namespace cpu {
void combine(const Combine& op, int isa);
}

namespace cuda {
void combine(const Combine& op, const Stream& stream);
}

}  // namespace cmlora
