#include "ops/scale_ranks.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/token_octets.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 128;

struct Params {
  ScaleRanks op;
};

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads) scale_ranks_kernel(Params params) {
  const ScaleRanks& op = params.op;
  const uint32_t each = uint32_t((op.R + kOctet - 1) / kOctet);
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= op.tokens * each) return;
  const int64_t token = i / each, k = (i - token * each) * kOctet, count = op.R - k;
  for (int64_t row = blockIdx.y; row < op.rows; row += gridDim.y) {
    const int64_t at = row * op.row_stride + token * op.token_stride + k;
    Features h = load_features<T>(vector, op.h, at, count);
    const Features scale = load_features<float>(vector, op.scales, row * op.R + k, count);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      h.value[e] = scale.value[e] == 0.0f ? 0.0f : h.value[e] * scale.value[e];
    }
    store_features<T>(vector, op.h, at, count, h);
  }
}

}  // namespace

void scale_ranks(const ScaleRanks& op, const Stream& stream) {
  if (op.rows * op.tokens * op.R == 0) return;
  const bool vector = op.R % kOctet == 0 && starts_aligned(op.h, op.token_stride) &&
                      op.row_stride % kOctet == 0 && aligned(op.scales, 16);
  const dim3 grid(unsigned(ceil_div(op.tokens * octets(op.R), kThreads)),
                  unsigned(std::min(op.rows, kMaxGrid)));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto kernel = vector ? scale_ranks_kernel<T, true> : scale_ranks_kernel<T, false>;
    launch("scale_ranks_", kernel, grid, kThreads, 0, stream, Params{op});
  });
}

}  // namespace cmlora::cuda
