#include "ops/mask_fuse.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxGrid = 65535;

struct Pixel {
  int64_t b;
  int64_t c;
  int64_t h;
  int64_t w;
};

// The sum of the masks, 0 where none claims the pixel.
__device__ float total(const MaskFuse& op, const float* mask, int64_t stride) {
  float sum = 0.0f;
  for (int64_t j = 0; j < op.J; ++j) sum += mask[j * stride];
  return sum > 0.0f ? sum : 0.0f;
}

template <typename T>
__device__ float fused(const MaskFuse& op, int64_t g, const Pixel& at) {
  const T* noise = static_cast<const T*>(op.noise) + g * op.noise_strides[0] +
                   at.b * op.noise_strides[2] + at.c * op.noise_strides[3] +
                   at.h * op.noise_strides[4] + at.w;
  const int64_t stride = op.B * op.H * op.W;
  const float* mask = op.masks ? op.masks + (at.b * op.H + at.h) * op.W + at.w : nullptr;
  const float sum = mask ? total(op, mask, stride) : 0.0f;
  float result = 0.0f;
  for (int64_t j = 0; j < op.J; ++j) {
    const float share = sum > 0.0f ? mask[j * stride] / sum : 1.0f / float(op.J);
    result = fmaf(share, to_float(noise[j * op.noise_strides[1]]), result);
  }
  return result;
}

// A thread makes one element of one image.
template <typename T>
__global__ void __launch_bounds__(kThreads) mask_fuse_kernel(MaskFuse op) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= op.C * op.H * op.W) return;
  Pixel at{0, i / (op.H * op.W), i / op.W % op.H, i % op.W};
  const int64_t images = op.guided ? op.B : op.G * op.B;
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    const int64_t g = image / op.B;
    at.b = image % op.B;
    float value = fused<T>(op, g, at);
    if (op.guided) value = fmaf(op.guidance_scale, fused<T>(op, 1, at) - value, value);
    T* out = static_cast<T*>(op.out) + g * op.out_strides[0] + at.b * op.out_strides[1] +
             at.c * op.out_strides[2] + at.h * op.out_strides[3] + at.w;
    from_float(value, out);
  }
}

}  // namespace

void mask_fuse(const MaskFuse& op, const Stream& stream) {
  const int64_t size = op.C * op.H * op.W, images = op.guided ? op.B : op.G * op.B;
  if (size * images == 0) return;
  const dim3 grid(unsigned(ceil_div(size, kThreads)), unsigned(std::min(images, kMaxGrid)));
  with_type(op.dtype, [&](auto element) {
    launch("mask_fuse_", mask_fuse_kernel<decltype(element)>, grid, kThreads, 0, stream, op);
  });
}

}  // namespace cmlora::cuda
