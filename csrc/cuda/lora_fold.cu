#include "ops/lora_fold.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"

// A block makes 64 x 64 weights of one row, in float32 throughout: it runs once per adapter set.

namespace cmlora::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kRanks = 16;  // of a pass through shared memory
constexpr int kSide = 16;   // threads are kSide x kSide, each with kEach x kEach weights
constexpr int kEach = kTile / kSide;
constexpr int kThreads = kSide * kSide;

struct Params {
  LoraFold op;
  int64_t column_tiles;
};

struct Panels {
  float a[kRanks][kTile];
  float b[kRanks][kTile + 1];  // written along the ranks: the odd step spreads the banks
};

// The tile's part of ranks first .. end of one adapter, those of b scaled; zeros past its edges.
template <typename T>
__device__ void load_panels(const LoraFold& op, int64_t n0, int64_t k0, int64_t first, int64_t end,
                            float scale, Panels* panels) {
  const T* a = static_cast<const T*>(op.a.data);
  const T* b = static_cast<const T*>(op.b.data);
  for (int i = threadIdx.x; i < kRanks * kTile; i += kThreads) {
    const int64_t k = k0 + i % kTile, rank = first + i / kTile;
    const bool exists = rank < end && k < op.K;
    panels->a[i / kTile][i % kTile] =
        exists ? to_float(a[rank * op.a.row_stride + k * op.a.col_stride]) : 0.0f;
  }
  for (int i = threadIdx.x; i < kRanks * kTile; i += kThreads) {
    const int64_t n = n0 + i / kRanks, rank = first + i % kRanks;
    const bool exists = rank < end && n < op.N;
    panels->b[i % kRanks][i / kRanks] =
        exists ? scale * to_float(b[n * op.b.row_stride + rank * op.b.col_stride]) : 0.0f;
  }
}

__device__ void multiply_panels(const Panels& panels, int ty, int tx, float (&acc)[kEach][kEach]) {
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    float a[kEach], b[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      a[i] = panels.a[r][tx + kSide * i];
      b[i] = panels.b[r][ty + kSide * i];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) acc[i][j] = fmaf(b[i], a[j], acc[i][j]);
    }
  }
}

template <typename T>
__device__ void write_tile(const LoraFold& op, int64_t row, int64_t n0, int64_t k0, int ty, int tx,
                           const float (&acc)[kEach][kEach]) {
  const T* w = static_cast<const T*>(op.w);
  T* out = static_cast<T*>(op.out) + row * op.N * op.K;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t n = n0 + ty + kSide * i;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t k = k0 + tx + kSide * j;
      if (n >= op.N || k >= op.K) continue;
      from_float(to_float(w[n * op.w_stride + k]) + acc[i][j], out + n * op.K + k);
    }
  }
}

template <typename T>
// Without the 2, nvcc 13.0 aims for more blocks on sm_100 and spills.
__global__ void __launch_bounds__(kThreads, 2) lora_fold_kernel(Params params) {
  __shared__ Panels panels;
  const LoraFold& op = params.op;
  const RowTable& table = op.table;
  const int ty = threadIdx.x / kSide, tx = threadIdx.x % kSide;
  const int64_t n0 = blockIdx.x / params.column_tiles * kTile;
  const int64_t k0 = blockIdx.x % params.column_tiles * kTile;
  for (int64_t row = blockIdx.y; row < table.rows; row += gridDim.y) {
    float acc[kEach][kEach] = {};
    const int end = table.row_ptr[row + 1];
    for (int entry = table.row_ptr[row]; entry < end; ++entry) {
      const int slot = table.row_slot[entry];
      const int64_t stop = table.slots[slot + 1];
      for (int64_t rank = table.slots[slot]; rank < stop; rank += kRanks) {
        __syncthreads();  // all have used the panels before
        load_panels<T>(op, n0, k0, rank, stop, table.row_scale[entry], &panels);
        __syncthreads();
        multiply_panels(panels, ty, tx, acc);
      }
    }
    write_tile<T>(op, row, n0, k0, ty, tx, acc);
  }
}

}  // namespace

void lora_fold(const LoraFold& op, const Stream& stream) {
  if (op.table.rows * op.N * op.K == 0) return;
  const Params params{op, ceil_div(op.K, kTile)};
  const int64_t tiles = ceil_div(op.N, kTile) * params.column_tiles;
  const dim3 grid(unsigned(tiles), unsigned(std::min(op.table.rows, kMaxGrid)));
  with_type(op.dtype, [&](auto element) {
    launch("lora_fold", lora_fold_kernel<decltype(element)>, grid, kThreads, 0, stream, params);
  });
}

}  // namespace cmlora::cuda
