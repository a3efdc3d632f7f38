#include "ops/cache_refresh.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/runs.h"

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;  // loads that a thread starts at once

// Sizes and strides count words of the copy.
struct Params {
  CacheRefresh op;
  Runs runs;
};

template <typename Word>
__global__ void __launch_bounds__(kThreads) cache_refresh_kernel(Params params) {
  const CacheRefresh& op = params.op;
  const Runs& runs = params.runs;
  const int64_t first = int64_t(blockIdx.x) * kThreads * kEach + threadIdx.x;
  for (int64_t r = blockIdx.y; r < op.R; r += gridDim.y) {
    const Word* from = static_cast<const Word*>(op.fresh) + r * op.fresh_strides[0];
    Word* to = static_cast<Word*>(op.cache) + op.rows[r] * op.cache_strides[0];
    Word words[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t at = first + i * kThreads;
      if (at < count(runs)) {
        words[i] = from[offset(runs, at, op.fresh_strides[1], op.fresh_strides[2])];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t at = first + i * kThreads;
      if (at < count(runs)) {
        to[offset(runs, at, op.cache_strides[1], op.cache_strides[2])] = words[i];
      }
    }
  }
}

template <typename Word>
void copy(CacheRefresh op, Runs runs, const Stream& stream) {
  const int64_t width = int64_t(sizeof(Word)) / op.element_size;
  runs.length /= width;
  for (int i = 0; i < 3; ++i) op.cache_strides[i] /= width, op.fresh_strides[i] /= width;
  const dim3 grid(unsigned(ceil_div(count(runs), kThreads * kEach)),
                  unsigned(std::min(op.R, kMaxGrid)));
  launch("cache_refresh_", cache_refresh_kernel<Word>, grid, kThreads, 0, stream, Params{op, runs});
}

bool in_vectors(const CacheRefresh& op, const Runs& runs) {
  const int64_t width = 16 / op.element_size;
  return divides(width, runs, op.cache_strides[1], op.cache_strides[2]) &&
         divides(width, runs, op.fresh_strides[1], op.fresh_strides[2]) &&
         op.cache_strides[0] % width == 0 && op.fresh_strides[0] % width == 0 &&
         aligned(op.cache, 16) && aligned(op.fresh, 16);
}

}  // namespace

void cache_refresh(const CacheRefresh& op, const Stream& stream) {
  if (op.R * op.C * op.H * op.W == 0) return;
  const Runs runs = find_runs(op.C, op.H, op.W, op.cache_strides + 1, op.fresh_strides + 1);
  if (in_vectors(op, runs)) return copy<uint4>(op, runs, stream);
  if (op.element_size == 4) return copy<uint32_t>(op, runs, stream);
  copy<uint16_t>(op, runs, stream);
}

}  // namespace cmlora::cuda
