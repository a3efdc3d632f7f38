#include "ops/attention_tap.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

// A block takes a few queries of a row through all heads, a warp two of them, a lane every 32nd
// key. No score leaves the registers, sums over heads have one order, and the gradient computes the
// scores again: for a prompt's keys that costs less than reading them.

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 6;   // of a processor: registers enough that none is spilled
constexpr int kPerWarp = 2;  // queries
constexpr int kQueries = kThreads / 32 * kPerWarp;
constexpr int kPerLane = 4;  // keys
constexpr int kMostKeys = 32 * kPerLane;
constexpr int kChunk = 32;  // features at a time; in the gradient one per lane

struct Shared {
  float keys[kMostKeys][kChunk + 1];  // one more: lanes read a column, each from its own bank
  float queries[kQueries][kChunk + 1];
  float table[kQueries][kMostKeys];  // a value per query and key
};

struct Place {
  int lane;
  int own;  // the warp's first query in the block
  int64_t row;
  int64_t first;  // the block's first query
};

// `width` features of `count` tokens; zeros up to `size` tokens and a whole chunk.
template <typename T>
__device__ void load(float (*tile)[kChunk + 1], int size, const void* tokens, int64_t start,
                     int64_t stride, int64_t count, int64_t width) {
  const T* from = static_cast<const T*>(tokens) + start;
  for (int i = int(threadIdx.x); i < size * kChunk; i += kThreads) {
    const int t = i / kChunk, d = i % kChunk;
    tile[t][d] = t < count && d < width ? to_float(from[t * stride + d]) : 0.0f;
  }
}

template <typename T>
__device__ void load_keys(const AttentionTap& op, const Place& at, int64_t feature, int64_t width,
                          Shared& shared) {
  const int size = (int(op.keys) + 31) / 32 * 32;
  load<T>(shared.keys, size, op.k, at.row * op.k_strides[0] + feature, op.k_strides[1], op.keys,
          width);
}

// Probabilities of the warp's queries, each lane those of its keys.
template <typename T>
__device__ void attend(const AttentionTap& op, const Place& at, int64_t head, Shared& shared,
                       float (&p)[kPerWarp][kPerLane]) {
  for (auto& query : p) {
    for (float& score : query) score = 0.0f;
  }
  for (int64_t d = 0; d < op.D; d += kChunk) {
    const int64_t feature = head * op.D + d, width = op.D - d;
    __syncthreads();
    load_keys<T>(op, at, feature, width, shared);
    load<T>(shared.queries, kQueries, op.q,
            at.row * op.q_strides[0] + at.first * op.q_strides[1] + feature, op.q_strides[1],
            op.queries - at.first, width);
    __syncthreads();
    for (int i = 0; i < kChunk; ++i) {
      for (int s = 0; s < kPerLane; ++s) {
        if (32 * s >= op.keys) break;
        const float key = shared.keys[at.lane + 32 * s][i];
        for (int n = 0; n < kPerWarp; ++n) {
          p[n][s] = fmaf(shared.queries[at.own + n][i], key, p[n][s]);
        }
      }
    }
  }
  for (auto& query : p) {
    float top = -INFINITY, sum = 0.0f;
    for (int s = 0; s < kPerLane; ++s) {
      query[s] = at.lane + 32 * s < op.keys ? query[s] * op.scale : -INFINITY;
      top = query[s] > top ? query[s] : top;
    }
    top = warp_max(top);
    for (float& score : query) sum += score = expf(score - top);
    sum = warp_sum(sum);
    for (float& score : query) score /= sum;
  }
}

__device__ Place place() {
  const int lane = int(threadIdx.x) % 32, own = int(threadIdx.x) / 32 * kPerWarp;
  return {lane, own, 0, int64_t(blockIdx.x) * kQueries};
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks) attention_tap_kernel(AttentionTap op) {
  __shared__ Shared shared;
  Place at = place();
  for (at.row = blockIdx.y; at.row < op.rows; at.row += gridDim.y) {
    float total[kPerWarp][kPerLane] = {}, p[kPerWarp][kPerLane];
    for (int64_t head = 0; head < op.heads; ++head) {
      attend<T>(op, at, head, shared, p);
      for (int n = 0; n < kPerWarp; ++n) {
        for (int s = 0; s < kPerLane; ++s) total[n][s] += p[n][s];
      }
    }
    for (int n = 0; n < kPerWarp; ++n) {
      for (int s = 0; s < kPerLane; ++s) shared.table[at.own + n][at.lane + 32 * s] = total[n][s];
    }
    __syncwarp();
    for (int n = 0; n < kPerWarp; ++n) {
      const int64_t query = at.first + at.own + n;
      if (query >= op.queries) break;
      float* maps = op.maps + (at.row * op.queries + query) * op.C;
      for (int64_t c = at.lane; c < op.C; c += 32) {
        maps[c] = shared.table[at.own + n][op.columns[c]];
      }
    }
  }
}

// dL/d p of the warp's queries, the same for every head.
__device__ void spread(const AttentionTap& op, const Place& at, float (&g)[kPerWarp][kPerLane]) {
  for (int n = 0; n < kPerWarp; ++n) {
    const int64_t query = at.first + at.own + n;
    const float* grad = op.grad + (at.row * op.queries + query) * op.C;
    for (int s = 0; s < kPerLane; ++s) {
      g[n][s] = 0.0f;
      for (int64_t c = 0; c < op.C && query < op.queries; ++c) {
        if (op.columns[c] == at.lane + 32 * s) g[n][s] += grad[c];
      }
    }
  }
}

// dq = Σ_j scale · p_j (g_j - Σ_i p_i g_i) k_j.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    attention_tap_backward_kernel(AttentionTap op) {
  __shared__ Shared shared;
  Place at = place();
  for (at.row = blockIdx.y; at.row < op.rows; at.row += gridDim.y) {
    float g[kPerWarp][kPerLane], p[kPerWarp][kPerLane];
    spread(op, at, g);
    for (int64_t head = 0; head < op.heads; ++head) {
      attend<T>(op, at, head, shared, p);
      for (int n = 0; n < kPerWarp; ++n) {
        float along = 0.0f;
        for (int s = 0; s < kPerLane; ++s) along += p[n][s] * g[n][s];
        along = warp_sum(along);
        for (int s = 0; s < kPerLane; ++s) {
          shared.table[at.own + n][at.lane + 32 * s] = op.scale * p[n][s] * (g[n][s] - along);
        }
      }
      for (int64_t d = 0; d < op.D; d += kChunk) {
        const int64_t feature = head * op.D + d;
        __syncthreads();
        load_keys<T>(op, at, feature, op.D - d, shared);
        __syncthreads();
        for (int n = 0; n < kPerWarp; ++n) {
          const int64_t query = at.first + at.own + n;
          float sum = 0.0f;
          for (int j = 0; j < op.keys; ++j) {
            sum = fmaf(shared.table[at.own + n][j], shared.keys[j][at.lane], sum);
          }
          if (query < op.queries && d + at.lane < op.D) {
            T* slope = static_cast<T*>(op.slope) + (at.row * op.queries + query) * op.heads * op.D;
            from_float(sum, slope + feature + at.lane);
          }
        }
      }
    }
  }
}

dim3 grid(const AttentionTap& op) {
  return dim3(unsigned(ceil_div(op.queries, kQueries)), unsigned(std::min(op.rows, kMaxGrid)));
}

}  // namespace

bool attention_tap_fits(int64_t keys) { return keys <= kMostKeys; }

void attention_tap(const AttentionTap& op, const Stream& stream) {
  if (op.rows * op.queries == 0) return;
  with_type(op.dtype, [&](auto element) {
    launch("attention_tap", attention_tap_kernel<decltype(element)>, grid(op), kThreads, 0, stream,
           op);
  });
}

void attention_tap_backward(const AttentionTap& op, const Stream& stream) {
  if (op.rows * op.queries == 0) return;
  with_type(op.dtype, [&](auto element) {
    launch("attention_tap", attention_tap_backward_kernel<decltype(element)>, grid(op), kThreads, 0,
           stream, op);
  });
}

}  // namespace cmlora::cuda
