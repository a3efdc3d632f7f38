#include "ops/layer_norm.h"

#include <cmath>

#include "cuda/launch.h"
#include "cuda/token_octets.h"
#include "cuda/warp.h"

namespace cmlora::cuda {
namespace {

constexpr int kWarps = 4;  // tokens of a block, a warp each
constexpr int kThreads = 32 * kWarps;

struct Params {
  LayerNorm op;
};

// The total of eight features as it is rounded; zeros past the token's end.
template <typename T, bool vector>
__device__ Octet<T> total_at(const LayerNorm& op, int64_t token, int64_t c) {
  const int64_t at = token * op.C + c, count = op.C - c;
  if (!op.residual) return load_octet<T>(vector, static_cast<const T*>(op.x) + at, 1, count);
  Features sum = load_features<T>(vector, op.x, at, count);
  const Features more = load_features<T>(vector, op.residual, at, count);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) sum.value[e] += more.value[e];
  return rounded<T>(sum);
}

// Σ body(feature) over the features of an octet that a token has.
template <typename T, typename Body>
__device__ float sum_over(const Octet<T>& octet, int64_t count, const Body& body) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = octet.get(i);
    if (2 * i < count) sum += body(pair.x);
    if (2 * i + 1 < count) sum += body(pair.y);
  }
  return sum;
}

template <typename T, bool vector>
__device__ void write(const LayerNorm& op, int64_t token, int64_t c, const Octet<T>& total,
                      float mean, float inverse) {
  const int64_t count = op.C - c;
  const Features weight = load_table<T>(vector, op.weight, op.affine_dtype, c, count, 1.0f);
  const Features bias = load_table<T>(vector, op.bias, op.affine_dtype, c, count, 0.0f);
  Features out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = total.get(i);
    out.value[2 * i] = (pair.x - mean) * inverse * weight.value[2 * i] + bias.value[2 * i];
    out.value[2 * i + 1] =
        (pair.y - mean) * inverse * weight.value[2 * i + 1] + bias.value[2 * i + 1];
  }
  store_features<T>(vector, op.out, token * op.out_stride + c, count, out);
}

// A warp norms a token, whose features stay in `kept` octets of every lane; 0: they are read anew
// for every sum.
template <typename T, bool vector, int kept>
__global__ void __launch_bounds__(kThreads) layer_norm_kernel(Params params) {
  const LayerNorm& op = params.op;
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= op.tokens) return;
  const int64_t step = 32 * kOctet, first = lane * kOctet;
  Octet<T> mine[kept ? kept : 1];
  const auto each = [&](auto&& body) {
    if constexpr (kept > 0) {
#pragma unroll
      for (int i = 0; i < kept; ++i) body(mine[i], first + i * step);
    } else {
      for (int64_t c = first; c < op.C; c += step) body(total_at<T, vector>(op, token, c), c);
    }
  };
  if constexpr (kept > 0) {
#pragma unroll
    for (int i = 0; i < kept; ++i) mine[i] = total_at<T, vector>(op, token, first + i * step);
  }
  float sum = 0.0f, squares = 0.0f;
  each([&](const Octet<T>& octet, int64_t c) {
    sum += sum_over(octet, op.C - c, [](float v) { return v; });
  });
  const float mean = warp_sum(sum) / float(op.C);
  each([&](const Octet<T>& octet, int64_t c) {
    squares += sum_over(octet, op.C - c, [&](float v) { return (v - mean) * (v - mean); });
  });
  const float inverse = 1.0f / sqrtf(warp_sum(squares) / float(op.C) + op.eps);
  each([&](const Octet<T>& octet, int64_t c) {
    const int64_t count = op.C - c;
    if (count <= 0) return;
    if (op.total)
      store_octet<T>(vector, static_cast<T*>(op.total) + token * op.C + c, count, octet);
    write<T, vector>(op, token, c, octet, mean, inverse);
  });
}

template <typename T, bool vector>
void run(const LayerNorm& op, const Stream& stream) {
  const int64_t needed = ceil_div(octets(op.C), 32);
  const auto kernel = needed <= 2   ? layer_norm_kernel<T, vector, 2>
                      : needed <= 3 ? layer_norm_kernel<T, vector, 3>
                      : needed <= 5 ? layer_norm_kernel<T, vector, 5>
                                    : layer_norm_kernel<T, vector, 0>;
  const dim3 grid(unsigned(ceil_div(op.tokens, kWarps)));
  launch("layer_norm", kernel, grid, kThreads, 0, stream, Params{op});
}

}  // namespace

void layer_norm(const LayerNorm& op, const Stream& stream) {
  if (op.tokens * op.C == 0) return;
  const bool vector = op.C % kOctet == 0 && starts_aligned(op.out, op.out_stride) &&
                      aligned(op.x, 16) && aligned(op.residual, 16) && aligned(op.total, 16) &&
                      aligned(op.weight, 16) && aligned(op.bias, 16);
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    vector ? run<T, true>(op, stream) : run<T, false>(op, stream);
  });
}

}  // namespace cmlora::cuda
