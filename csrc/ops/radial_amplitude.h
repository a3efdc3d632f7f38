#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// Mean amplitude per integer radius of the spectrum of the channel mean, divided by its maximum
// (profile), and its mean over the bins from first_bin on (mean; NaN where there are none).
struct RadialAmplitude {
  float* mean;          // [B]
  float* profile;       // [B, bins]
  const void* latents;  // [B, C, H, W], last dimension contiguous
  float* scratch;       // CUDA: radial_scratch(H, W) floats an image, null where that is 0
  int64_t B;
  int64_t C;
  int64_t H;
  int64_t W;
  int64_t b_stride;
  int64_t c_stride;
  int64_t h_stride;
  int64_t first_bin;
  bool log;
  DType dtype;
};

namespace cpu {
void radial_amplitude(const RadialAmplitude& op, int isa);
}

namespace cuda {
void radial_amplitude(const RadialAmplitude& op, const Stream& stream);

int64_t radial_scratch(int64_t H, int64_t W, int device);
}  // namespace cuda

}  // namespace cmlora
