#include "ops/geglu.h"

#include "cuda/launch.h"
#include "cuda/token_octets.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kSqrtHalf = 0.70710678f;

struct Params {
  Geglu op;
};

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads) geglu_kernel(Params params) {
  const Geglu& op = params.op;
  const uint32_t each = uint32_t((op.N + kOctet - 1) / kOctet);
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= op.tokens * each) return;
  const int64_t token = i / each, n = (i - token * each) * kOctet, count = op.N - n;
  Features value = load_features<T>(vector, op.x, token * 2 * op.N + n, count);
  const Features gate = load_features<T>(vector, op.x, (token * 2 + 1) * op.N + n, count);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    const float g = gate.value[e];
    value.value[e] *= 0.5f * g * (1.0f + erff(g * kSqrtHalf));
  }
  store_features<T>(vector, op.out, token * op.out_stride + n, count, value);
}

}  // namespace

void geglu(const Geglu& op, const Stream& stream) {
  if (op.tokens * op.N == 0) return;
  const bool vector =
      op.N % kOctet == 0 && aligned(op.x, 16) && starts_aligned(op.out, op.out_stride);
  const dim3 grid(unsigned(ceil_div(op.tokens * octets(op.N), kThreads)));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto kernel = vector ? geglu_kernel<T, true> : geglu_kernel<T, false>;
    launch("geglu", kernel, grid, kThreads, 0, stream, Params{op});
  });
}

}  // namespace cmlora::cuda
