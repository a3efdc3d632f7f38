#include "ops/combine.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/octet.h"
#include "cuda/runs.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 128;

struct Params {
  Combine op;
  Runs runs;
};

// Σ_j weights[j] · noise[j] for the `count` elements, eight at most, that start at `from`.
template <typename T, bool vector, bool per_pixel>
__device__ void weighted_sum(const Combine& op, const T* from, const float* weights, int64_t count,
                             float (&sums)[kOctet]) {
  const int64_t stride = per_pixel ? op.B * op.H * op.W : op.B;
#pragma unroll
  for (int e = 0; e < kOctet; ++e) sums[e] = 0.0f;
  for (int64_t j = 0; j < op.J; ++j) {
    const float* weight = weights + j * stride;
    Octet<float> shares;
    if (per_pixel) shares = load_octet<float>(vector, weight, 1, count);
    const Octet<T> octet = load_octet<T>(vector, from + j * op.noise_strides[1], 1, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 values = octet.get(i);
      const float2 share = per_pixel ? shares.get(i) : float2{*weight, *weight};
      sums[2 * i] = fmaf(share.x, values.x, sums[2 * i]);
      sums[2 * i + 1] = fmaf(share.y, values.y, sums[2 * i + 1]);
    }
  }
}

template <typename T, bool vector, bool per_pixel>
__device__ void combine_octet(const Combine& op, const T* noise, const float* weights, T* out,
                              int64_t count) {
  float sums[kOctet];
  weighted_sum<T, vector, per_pixel>(op, noise, weights, count, sums);
  if (op.guided) {
    float other[kOctet];
    weighted_sum<T, vector, per_pixel>(op, noise + op.noise_strides[0], weights, count, other);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      sums[e] = fmaf(op.guidance_scale, other[e] - sums[e], sums[e]);
    }
  }
  Octet<T> result;
#pragma unroll
  for (int i = 0; i < 4; ++i) result.set(i, sums[2 * i], sums[2 * i + 1]);
  store_octet<T>(vector, out, count, result);
}

// A thread makes eight neighbours of one image, or one element where they are no vectors.
template <typename T, bool vector, bool per_pixel>
__global__ void __launch_bounds__(kThreads) combine_kernel(Params params) {
  const Combine& op = params.op;
  const Runs& runs = params.runs;
  const int64_t width = vector ? kOctet : 1;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (i >= count(runs)) return;
  const int64_t images = op.guided ? op.B : op.G * op.B;
  const int64_t pixels = op.H * op.W;
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    const int64_t g = image / op.B, b = image % op.B;
    const T* noise = static_cast<const T*>(op.noise) + g * op.noise_strides[0] +
                     b * op.noise_strides[2] +
                     offset(runs, i, op.noise_strides[3], op.noise_strides[4]);
    T* out = static_cast<T*>(op.out) + g * op.out_strides[0] + b * op.out_strides[1] +
             offset(runs, i, op.out_strides[2], op.out_strides[3]);
    const float* weights =
        op.weights + (per_pixel ? b * pixels + int64_t(uint64_t(i) % uint64_t(pixels)) : b);
    combine_octet<T, vector, per_pixel>(op, noise, weights, out, width);
  }
}

bool in_vectors(const Combine& op, const Runs& runs) {
  bool whole = divides(kOctet, runs, op.noise_strides[3], op.noise_strides[4]) &&
               divides(kOctet, runs, op.out_strides[2], op.out_strides[3]) &&
               aligned(op.noise, 16) && aligned(op.out, 16);
  for (int i = 0; i < 3; ++i) whole = whole && op.noise_strides[i] % kOctet == 0;
  for (int i = 0; i < 2; ++i) whole = whole && op.out_strides[i] % kOctet == 0;
  return whole && (!op.per_pixel || (op.H * op.W % kOctet == 0 && aligned(op.weights, 16)));
}

}  // namespace

void combine(const Combine& op, const Stream& stream) {
  if (op.G * op.B * op.C * op.H * op.W == 0) return;
  const Runs runs = find_runs(op.C, op.H, op.W, op.out_strides + 2, op.noise_strides + 3);
  const bool vector = in_vectors(op, runs);
  const int64_t images = op.guided ? op.B : op.G * op.B;
  const dim3 grid(unsigned(ceil_div(count(runs), kThreads * (vector ? kOctet : 1))),
                  unsigned(std::min(images, kMaxGrid)));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto plain = vector ? combine_kernel<T, true, false> : combine_kernel<T, false, false>;
    const auto mixed = vector ? combine_kernel<T, true, true> : combine_kernel<T, false, true>;
    const auto kernel = op.per_pixel ? mixed : plain;
    launch("combine_", kernel, grid, kThreads, 0, stream, Params{op, runs});
  });
}

}  // namespace cmlora::cuda
