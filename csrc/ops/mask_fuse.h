#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// out[g, b] = Σ_j share_j · noise[g, j, b] per pixel, share_j = masks[j, b] / Σ_j masks[j, b], and
// 1 / J where no mask claims it; guided: out[b] = out_0 + s · (out_1 - out_0).
struct MaskFuse {
  void* out;           // [G, B, C, H, W], guided [B, C, H, W], last dimension contiguous
  const void* noise;   // [G, J, B, C, H, W], last dimension contiguous
  const float* masks;  // [J, B, H, W], contiguous; null: 1 everywhere
  int64_t G;
  int64_t J;
  int64_t B;
  int64_t C;
  int64_t H;
  int64_t W;
  int64_t out_strides[4];    // of G (0 when guided), B, C, H
  int64_t noise_strides[5];  // of G, J, B, C, H
  bool guided;
  float guidance_scale;
  DType dtype;
};

namespace cuda {
void mask_fuse(const MaskFuse& op, const Stream& stream);
}

}  // namespace cmlora
