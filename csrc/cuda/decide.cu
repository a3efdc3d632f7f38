#include "ops/decide.h"

#include "cuda/launch.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 128;

__device__ void decide_stages(const Decide& op) {
  for (int64_t b = threadIdx.x; b < op.B; b += kThreads) {
    const float reading = op.reading[b];
    const bool above = reading == reading ? double(reading) >= op.threshold : op.nan_early;
    op.early[b] = above && (op.early[b] != 0 || !op.latch);
  }
}

__device__ int stage(const Decide& op, int64_t image) { return op.early[image] != 0; }

__device__ void write_rows(const Decide& op) {
  const int64_t parts = op.batch / op.B, runs = op.B * op.F, rows = runs * parts;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) {
    const int64_t run = i / parts, part = i % parts, image = run / op.F;
    const int place = op.places[stage(op, image) * op.F + run % op.F];
    op.deep[i] = int32_t(place * op.batch + part * op.B + image);
    op.deep[rows + i] = place;
    op.deep[2 * rows + i] = i < runs ? op.places[stage(op, i / op.F) * op.F + i % op.F] : 0;
  }
}

// One block: some hundred numbers.
__global__ void __launch_bounds__(kThreads, 1) decide_kernel(Decide op) {
  if (op.reading) decide_stages(op);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < op.J * op.batch; i += kThreads) {
    op.weights[i] = op.shares[stage(op, i % op.batch % op.B) * op.J + i / op.batch];
  }
  write_rows(op);
}

}  // namespace

void decide(const Decide& op, const Stream& stream) {
  if (op.B == 0) return;
  launch("decide_", decide_kernel, dim3(1), kThreads, 0, stream, op);
}

}  // namespace cmlora::cuda
