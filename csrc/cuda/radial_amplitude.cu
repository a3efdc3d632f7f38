#include "ops/radial_amplitude.h"

#include <algorithm>

#include "common/fft.h"
#include "common/radius.h"
#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

// A block makes one image, in float32 as cuFFT would, its sums over frequencies in double. They
// have one order, so that a result repeats bit for bit.

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kChannels = 4;           // loads that a thread starts at once
constexpr int64_t kMaxSide = 1 << 15;  // squares of sides stay 32-bit integers

// Sizes of the arrays that one image needs; the half ky <= H/2 stands for the whole spectrum.
struct Sizes {
  int H;
  int W;
  int half;    // H / 2 + 1
  int pairs;   // (W + 1) / 2 pairs of real columns
  int bins;    // integer radii
  int buffer;  // numbers of a stage

  Sizes(int64_t H, int64_t W)
      : H(int(H)),
        W(int(W)),
        half(int(H / 2 + 1)),
        pairs(int((W + 1) / 2)),
        bins(int(radius(H / 2, W / 2) + 1)),
        buffer(int(std::max(H * ((W + 1) / 2), W * (H / 2 + 1)))) {}

  int64_t fixed_bytes() const { return 8 * int64_t(bins) + 8 * (int64_t(H) + W); }
  CMLORA_HOST_DEVICE int64_t buffer_floats() const {
    return 4 * int64_t(buffer);
  }  // two complex arrays
};

struct Params {
  RadialAmplitude op;
  Sizes sizes;
};

using Numbers = Complexes<float>;
using Turns = Roots<float, int>;

// exp(-2πi j / n), rounded once, into [2 n] floats.
__device__ Turns fill_roots(float* memory, int n) {
  for (int j = threadIdx.x; j < n; j += kThreads) {
    double sine, cosine;
    sincospi(-2.0 * j / n, &sine, &cosine);
    memory[j] = float(cosine);
    memory[n + j] = float(sine);
  }
  return {memory, memory + n, n};
}

// Channel mean; columns c and c + pairs become the parts of one complex column.
template <typename T>
__device__ void load_columns(const RadialAmplitude& op, const Sizes& sizes, const T* latents,
                             const Numbers& to) {
  for (int job = threadIdx.x; job < sizes.H * sizes.pairs; job += kThreads) {
    const int h = job / sizes.pairs, c = job % sizes.pairs;
    const bool has_second = c + sizes.pairs < sizes.W;
    const T* from = latents + h * op.h_stride + c;
    float first = 0.0f, second = 0.0f;
    for (int64_t channel = 0; channel < op.C; channel += kChannels) {
#pragma unroll
      for (int q = 0; q < kChannels; ++q) {
        const T* at = from + (channel + q) * op.c_stride;
        const bool exists = channel + q < op.C;
        first += exists ? to_float(at[0]) : 0.0f;
        second += exists && has_second ? to_float(at[sizes.pairs]) : 0.0f;
      }
    }
    to.re[job] = first / float(op.C);
    to.im[job] = second / float(op.C);
  }
  __syncthreads();
}

// Transforms data [roots.n, batch] along its first axis; returns the array of the two it lies in.
__device__ Numbers transform(Numbers data, Numbers work, const Turns& roots, int batch) {
  int size = roots.n, length = batch;
  while (size > 1) {
    const int p = next_factor(size);
    size /= p;
    for (int job = threadIdx.x; job < size * length; job += kThreads) {
      const int k = job / length, i = job % length;
      fft_stage(data, work, roots, p, size, length, k, i, i + 1);
    }
    __syncthreads();
    const Numbers result = work;
    work = data;
    data = result;
    length *= p;
  }
  return data;
}

// Takes the spectra of two real columns apart, X and Y of Z = X + iY, and turns them:
// from [H, pairs] to [W, half].
__device__ void split_pairs(const Sizes& sizes, const Numbers& from, const Numbers& to) {
  const int pairs = sizes.pairs, half = sizes.half;
  for (int job = threadIdx.x; job < half * pairs; job += kThreads) {
    const int k = job / pairs, c = job % pairs;
    const int mirror = (k == 0 ? 0 : sizes.H - k) * pairs + c;
    const float p = from.re[job], q = from.im[job], u = from.re[mirror], v = from.im[mirror];
    to.re[c * half + k] = 0.5f * (p + u);
    to.im[c * half + k] = 0.5f * (q - v);
    if (c + pairs < sizes.W) {
      to.re[(c + pairs) * half + k] = 0.5f * (q + v);
      to.im[(c + pairs) * half + k] = 0.5f * (u - p);
    }
  }
  __syncthreads();
}

__device__ float amplitude(const Numbers& spectrum, int at, bool log) {
  const float value = hypotf(spectrum.re[at], spectrum.im[at]);
  return log ? logf(value + 1e-8f) : value;
}

// Mean amplitude of one radius; the lanes of a warp take rows ky in turn.
__device__ double mean_of_bin(const Sizes& sizes, const Numbers& spectrum, bool log, int bin) {
  double sum = 0.0;
  int cells = 0;
  const int rows = bin < sizes.H / 2 ? bin : sizes.H / 2;
  for (int ky = threadIdx.x % 32; ky <= rows; ky += 32) {
    const Arc kx = arc(bin, ky);
    const int last = kx.last < sizes.W / 2 ? int(kx.last) : sizes.W / 2;
    const int weight = ky == 0 || 2 * ky == sizes.H ? 1 : 2;  // row -ky is its mirror image
    for (int x = int(kx.first); x <= last; ++x) {
      if (2 * x < sizes.W) {
        sum += weight * double(amplitude(spectrum, x * sizes.half + ky, log));
        cells += weight;
      }
      if (x > 0) {  // -x
        sum += weight * double(amplitude(spectrum, (sizes.W - x) * sizes.half + ky, log));
        cells += weight;
      }
    }
  }
  return warp_sum(sum) / warp_sum(cells);
}

// Divides by the maximum and takes the mean of the high band; for one warp.
__device__ void finish(const RadialAmplitude& op, int bins, const double* means, int64_t image) {
  const int lane = threadIdx.x;
  double top = means[0];
  for (int bin = lane; bin < bins; bin += 32) top = top < means[bin] ? means[bin] : top;
  top = warp_max(top);
  double sum = 0.0;
  for (int bin = lane; bin < bins; bin += 32) {
    const double value = means[bin] / top;
    op.profile[image * bins + bin] = float(value);
    if (bin >= op.first_bin) sum += value;
  }
  sum = warp_sum(sum);
  const int64_t counted = op.first_bin < bins ? bins - op.first_bin : 0;
  if (lane == 0) op.mean[image] = float(sum / double(counted));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) radial_amplitude_kernel(Params params) {
  const RadialAmplitude& op = params.op;
  const Sizes& sizes = params.sizes;
  const int64_t image = blockIdx.x;
  double* means = reinterpret_cast<double*>(shared_memory());
  float* memory = reinterpret_cast<float*>(means + sizes.bins);
  const Turns h_roots = fill_roots(memory, sizes.H);
  const Turns w_roots = fill_roots(memory + 2 * sizes.H, sizes.W);
  float* buffers = memory + 2 * (sizes.H + sizes.W);
  if (params.op.scratch) buffers = params.op.scratch + image * sizes.buffer_floats();
  const Numbers one{buffers, buffers + sizes.buffer};
  const Numbers two{buffers + 2 * sizes.buffer, buffers + 3 * sizes.buffer};

  load_columns(op, sizes, static_cast<const T*>(op.latents) + image * op.b_stride, one);
  const Numbers columns = transform(one, two, h_roots, sizes.pairs);
  const Numbers other = columns.re == one.re ? two : one;
  split_pairs(sizes, columns, other);
  const Numbers spectrum = transform(other, columns, w_roots, sizes.half);
  for (int bin = threadIdx.x / 32; bin < sizes.bins; bin += kWarps) {
    const double mean = mean_of_bin(sizes, spectrum, op.log, bin);
    if (threadIdx.x % 32 == 0) means[bin] = mean;
  }
  __syncthreads();
  if (threadIdx.x < 32) finish(op, sizes.bins, means, image);
}

}  // namespace

int64_t radial_scratch(int64_t H, int64_t W, int device) {
  const Sizes sizes(H, W);
  const int64_t wanted = sizes.fixed_bytes() + 4 * sizes.buffer_floats();
  return wanted <= device_limits(device).shared_bytes ? 0 : sizes.buffer_floats();
}

void radial_amplitude(const RadialAmplitude& op, const Stream& stream) {
  if (op.B == 0) return;
  if (op.H >= kMaxSide || op.W >= kMaxSide) {
    throw std::invalid_argument("radial_amplitude: expected latents below 32768 x 32768; got " +
                                std::to_string(op.H) + " x " + std::to_string(op.W));
  }
  const Params params{op, Sizes(op.H, op.W)};
  const int64_t buffers = op.scratch ? 0 : 4 * params.sizes.buffer_floats();
  const int64_t bytes = params.sizes.fixed_bytes() + buffers;
  with_type(op.dtype, [&](auto element) {
    launch("radial_amplitude", radial_amplitude_kernel<decltype(element)>, dim3(unsigned(op.B)),
           kThreads, int(bytes), stream, params);
  });
}

}  // namespace cmlora::cuda
