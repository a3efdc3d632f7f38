#include "ops/add_shift.h"

#include "cuda/launch.h"
#include "cuda/token_octets.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 256;

struct Params {
  AddShift op;
};

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads) add_shift_kernel(Params params) {
  const AddShift& op = params.op;
  const uint32_t each = uint32_t((op.C + kOctet - 1) / kOctet);
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= op.tokens * each) return;
  const int64_t token = i / each, c = (i - token * each) * kOctet, count = op.C - c;
  Features sum = load_features<T>(vector, op.x, token * op.C + c, count);
  const Features y = load_features<T>(vector, op.y, token * op.C + c, count);
  const Features shift = load_table<T>(vector, op.shift, op.shift_dtype, c, count, 0.0f);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) sum.value[e] += y.value[e] + shift.value[e];
  store_features<T>(vector, op.out, token * op.out_stride + c, count, sum);
}

}  // namespace

void add_shift(const AddShift& op, const Stream& stream) {
  if (op.tokens * op.C == 0) return;
  const bool vector = op.C % kOctet == 0 && aligned(op.x, 16) && aligned(op.y, 16) &&
                      aligned(op.shift, 16) && starts_aligned(op.out, op.out_stride);
  const dim3 grid(unsigned(ceil_div(op.tokens * octets(op.C), kThreads)));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto kernel = vector ? add_shift_kernel<T, true> : add_shift_kernel<T, false>;
    launch("add_shift", kernel, grid, kThreads, 0, stream, Params{op});
  });
}

}  // namespace cmlora::cuda
