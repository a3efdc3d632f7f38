#include "ops/contrastive_loss.h"

#include "cuda/launch.h"
#include "cuda/warp.h"

// A block makes one image. Sums have one order: a warp adds up a map's pixels or a pair's
// products, so that a result repeats bit for bit. The maps are read again from the cache; what
// there is of each map and each pair lies in shared memory.

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMostBytes = 40 << 10;  // with the static ones below what needs no asking
constexpr float kFlat = 1e-6f;            // as FLAT in ops/reference/clora.py

// Tables of one image: of every tracked map, of every map in the loss, of every ordered pair.
struct Tables {
  double* scale;   // [S] 1 / norm of the map less its minimum, 0 where that is flat
  double* logits;  // [K, K], then dL/d cosine
  double* rest;    // [K] log Σ e^logit over the maps of other labels
  float* miss;     // [K] Σ_j 1 - p_ij
  float* least;    // [S]
  float* ties;     // [S] pixels that are the least

  __device__ Tables(const ContrastiveLoss& op, unsigned char* memory)
      : scale(reinterpret_cast<double*>(memory)),
        logits(scale + op.S),
        rest(logits + op.K * op.K),
        miss(reinterpret_cast<float*>(rest + op.K)),
        least(miss + op.K),
        ties(least + op.S) {}
};

int64_t table_bytes(int64_t S, int64_t K) { return 16 * S + 12 * K + 8 * K * K; }

struct Image {
  int lane;
  int warp;
  int64_t b;
};

__device__ const float* map_of(const ContrastiveLoss& op, int64_t s, int64_t b) {
  return op.maps + (s * op.B + b) * op.P;
}

// Minimum, how often it occurs, and the norm of the rest, of every map.
__device__ void measure_maps(const ContrastiveLoss& op, const Image& image, const Tables& tables) {
  for (int64_t s = image.warp; s < op.S; s += kWarps) {
    const float* map = map_of(op, s, image.b);
    float least = map[0], top = 0.0f, ties = 0.0f;
    for (int64_t p = image.lane; p < op.P; p += 32) {
      const float value = map[p];
      least = value < least ? value : least;
      top = fabsf(value) > top ? fabsf(value) : top;
    }
    least = warp_min(least);
    top = warp_max(top);
    double squares = 0.0;
    float largest = 0.0f;
    for (int64_t p = image.lane; p < op.P; p += 32) {
      const float value = map[p] - least;
      squares += double(value) * double(value);
      largest = value > largest ? value : largest;
      ties += value == 0.0f;
    }
    squares = warp_sum(squares);
    largest = warp_max(largest);
    ties = warp_sum(ties);
    if (image.lane == 0) {
      tables.least[s] = least;
      tables.ties[s] = ties;
      tables.scale[s] = largest > kFlat * top ? 1.0 / sqrt(squares) : 0.0;
    }
  }
  __syncthreads();
}

// s_ij / τ of every ordered pair.
__device__ void compare(const ContrastiveLoss& op, const Image& image, const Tables& tables) {
  const int K = int(op.K);
  for (int pair = image.warp; pair < K * K; pair += kWarps) {
    const int i = op.index[pair / K], j = op.index[pair % K];
    const float* first = map_of(op, i, image.b);
    const float* second = map_of(op, j, image.b);
    double sum = 0.0;
    for (int64_t p = image.lane; p < op.P; p += 32) {
      sum += double(first[p] - tables.least[i]) * double(second[p] - tables.least[j]);
    }
    sum = warp_sum(sum);
    if (image.lane == 0) {
      tables.logits[pair] = sum * tables.scale[i] * tables.scale[j] / op.temperature;
    }
  }
  __syncthreads();
}

__device__ bool takes_part(const ContrastiveLoss& op, const Tables& tables, int64_t i) {
  return tables.scale[op.index[i]] > 0.0;
}

__device__ bool is_pair(const ContrastiveLoss& op, const Tables& tables, int64_t i, int64_t j) {
  return i != j && op.labels[i] == op.labels[j] && takes_part(op, tables, i) &&
         takes_part(op, tables, j);
}

__device__ bool is_other(const ContrastiveLoss& op, const Tables& tables, int64_t i, int64_t j) {
  return op.labels[i] != op.labels[j] && takes_part(op, tables, i) && takes_part(op, tables, j);
}

// log(1 + e^x) without overflow.
__device__ float softplus(float x) { return (x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x))); }

// The loss, and the logits' slopes over them; a thread per row i, then one for the sums.
__device__ void slopes(const ContrastiveLoss& op, const Image& image, const Tables& tables) {
  __shared__ double losses[kThreads];
  __shared__ int pairs[kThreads];
  double loss = 0.0;
  int count = 0;
  for (int64_t i = threadIdx.x; i < op.K; i += kThreads) {
    const double* row = tables.logits + i * op.K;
    double top = -INFINITY;
    float sum = 0.0f, miss = 0.0f;
    for (int64_t j = 0; j < op.K; ++j) {
      if (is_other(op, tables, i, j) && row[j] > top) top = row[j];
    }
    for (int64_t j = 0; j < op.K; ++j) {
      if (is_other(op, tables, i, j)) sum += expf(float(row[j] - top));
    }
    const double rest = sum > 0.0f ? top + logf(sum) : -INFINITY;
    for (int64_t j = 0; j < op.K; ++j) {
      if (!is_pair(op, tables, i, j)) continue;
      ++count;
      if (sum > 0.0f) {
        loss += softplus(float(rest - row[j]));
        miss += 1.0f / (1.0f + expf(float(row[j] - rest)));
      }
    }
    tables.rest[i] = rest;
    tables.miss[i] = miss;
  }
  losses[threadIdx.x] = loss;
  pairs[threadIdx.x] = count;
  __syncthreads();
  double total = 0.0;
  int64_t number = 0;
  for (int t = 0; t < kThreads && t < op.K; ++t) total += losses[t], number += pairs[t];
  const float share = 1.0f / float(number > 0 ? number : 1) / op.temperature;
  if (threadIdx.x == 0) op.loss[image.b] = float(total) / float(number > 0 ? number : 1);
  const int K = int(op.K);
  for (int at = threadIdx.x; at < K * K; at += kThreads) {
    const int i = at / K, j = at % K;
    const double logit = tables.logits[at], rest = tables.rest[i];
    float slope = 0.0f;
    if (rest > -INFINITY) {
      if (is_other(op, tables, i, j)) slope = tables.miss[i] * expf(float(logit - rest));
      if (is_pair(op, tables, i, j)) slope = -1.0f / (1.0f + expf(float(logit - rest)));
    }
    tables.logits[at] = slope * share;
  }
  __syncthreads();
}

// Writes dL/d map of every tracked map: Σ over its places i in the loss and all j of
// (d_ij + d_ji) (e_j - s_ij e_i) / |map i|, less its sum, which goes to the least pixels.
__device__ void pull(const ContrastiveLoss& op, const Image& image, const Tables& tables) {
  for (int64_t s = image.warp; s < op.S; s += kWarps) {
    const float* map = map_of(op, s, image.b);
    float* gradient = op.gradient + (s * op.B + image.b) * op.P;
    const double scale = tables.scale[s];
    double along = 0.0, whole = 0.0;  // Σ gradient · e_s, Σ gradient
    for (int64_t p = image.lane; p < op.P; p += 32) {
      double sum = 0.0;
      for (int64_t i = 0; i < op.K && scale > 0.0; ++i) {
        if (op.index[i] != s) continue;
        for (int64_t j = 0; j < op.K; ++j) {
          const int other = op.index[j];
          if (tables.scale[other] == 0.0) continue;
          const double slope = tables.logits[i * op.K + j] + tables.logits[j * op.K + i];
          if (slope == 0.0) continue;
          const double value = map_of(op, other, image.b)[p] - tables.least[other];
          sum += slope * value * tables.scale[other];
        }
      }
      gradient[p] = float(sum);
      if (scale > 0.0) along += sum * (map[p] - tables.least[s]) * scale;
    }
    along = warp_sum(along);
    for (int64_t p = image.lane; p < op.P; p += 32) {
      if (scale > 0.0) {
        const double unit = double(map[p] - tables.least[s]) * scale;
        gradient[p] = float((gradient[p] - along * unit) * scale);
      }
      whole += gradient[p];
    }
    const float share = float(warp_sum(whole)) / tables.ties[s];
    for (int64_t p = image.lane; p < op.P; p += 32) {
      if (map[p] == tables.least[s]) gradient[p] -= share;
    }
  }
}

__global__ void __launch_bounds__(kThreads) contrastive_loss_kernel(ContrastiveLoss op) {
  const Tables tables(op, shared_memory());
  const Image image{int(threadIdx.x) % 32, int(threadIdx.x) / 32, int64_t(blockIdx.x)};
  measure_maps(op, image, tables);
  compare(op, image, tables);
  slopes(op, image, tables);
  pull(op, image, tables);
}

}  // namespace

bool contrastive_loss_fits(int64_t S, int64_t K) { return table_bytes(S, K) <= kMostBytes; }

void contrastive_loss(const ContrastiveLoss& op, const Stream& stream) {
  if (op.B == 0) return;
  const int bytes = int(table_bytes(op.S, op.K));
  launch("contrastive_loss", contrastive_loss_kernel, dim3(unsigned(op.B)), kThreads, bytes, stream,
         op);
}

}  // namespace cmlora::cuda
