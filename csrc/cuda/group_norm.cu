#include "ops/group_norm.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda/launch.h"
#include "cuda/token_octets.h"
#include "cuda/warp.h"

// Two launches over the same blocks, each some tokens of a row and some whole groups of channels:
// first the mean and the squares around it of every group there, then those of all the row's
// tokens, and the norm.

namespace cmlora::cuda {
namespace {

constexpr int kThreads = 256;
template <bool vector>
constexpr int kAhead = vector ? 4 : 1;  // loads that a thread starts at once
constexpr int kLines = kThreads * kOctet;  // a float for every channel and lane of a block
constexpr int64_t kSpan = 256;  // channels of a block, at least where groups are that wide

struct Params {
  GroupNorm op;
  int64_t chunk;  // tokens of a block
  int span;       // channels of a block, whole groups and, in vectors, whole octets
};

// Which columns, of eight channels each, and which tokens of its block a thread takes.
struct Place {
  int columns, lanes, lane, column;

  __device__ explicit Place(int span) {
    columns = (span + kOctet - 1) / kOctet;
    lanes = columns < kThreads ? kThreads / columns : 1;
    lane = columns < kThreads ? threadIdx.x / columns : 0;
    column = columns < kThreads ? threadIdx.x % columns : threadIdx.x;
  }
  __device__ bool idle() const { return lane >= lanes; }
};

// The part of the work that a block has: channels from .. from + span of tokens begin .. end.
struct Part {
  int64_t from, begin, end;
  int span, group;

  __device__ explicit Part(const Params& params) {
    const GroupNorm& op = params.op;
    from = int64_t(blockIdx.y) * params.span;
    span = int(op.C - from < params.span ? op.C - from : params.span);
    begin = int64_t(blockIdx.x) * params.chunk;
    end = op.tokens < begin + params.chunk ? op.tokens : begin + params.chunk;
    group = int(op.C / op.groups);
  }
  // Of a channel of the block; past its end, any.
  __device__ int group_of(int channel) const { return channel < span ? channel / group : 0; }
  __device__ int groups() const { return span / group; }
};

template <typename T, bool vector>
__device__ Features shifts(const GroupNorm& op, int64_t row, int64_t c, int64_t count) {
  return load_table<T>(vector, op.shift, op.shift_dtype, row * op.shift_stride + c, count, 0.0f);
}

// Σ z over a block's tokens and a group's channels, one sum a group in `sums`; with `means` those
// of (z - mean)². `lines` has span floats for every lane.
template <typename T, bool vector, bool squares>
__device__ void sum_groups(const GroupNorm& op, const Part& part, int64_t row, float* lines,
                           float* sums, const float* means) {
  const Place place(part.span);
  for (int column = place.column; column < place.columns; column += kThreads) {
    if (place.idle()) break;
    const int at = column * kOctet;
    const int64_t c = part.from + at, count = part.span - at;
    Features shift = shifts<T, vector>(op, row, c, count), mean = {}, line = {};
#pragma unroll
    for (int e = 0; e < kOctet && squares; ++e) mean.value[e] = means[part.group_of(at + e)];
#pragma unroll kAhead<vector>
    for (int64_t token = part.begin + place.lane; token < part.end; token += place.lanes) {
      const int64_t from = row * op.row_stride + token * op.token_stride + c;
      const Features x = load_features<T>(vector, op.x, from, count);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) {
        const float z = x.value[e] + shift.value[e] - mean.value[e];
        line.value[e] += squares ? z * z : z;
      }
    }
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (e < count) lines[place.lane * part.span + at + e] = line.value[e];
    }
  }
  __syncthreads();
  for (int c = threadIdx.x; c < part.span; c += kThreads) {
    float sum = 0.0f;
    for (int lane = 0; lane < place.lanes; ++lane) sum += lines[lane * part.span + c];
    lines[c] = sum;
  }
  __syncthreads();
  for (int g = threadIdx.x; g < part.groups(); g += kThreads) {
    float sum = 0.0f;
    for (int c = 0; c < part.group; ++c) sum += lines[g * part.group + c];
    sums[g] = sum;
  }
  __syncthreads();
}

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads) moments_kernel(Params params) {
  const GroupNorm& op = params.op;
  const Part part(params);
  float* lines = reinterpret_cast<float*>(shared_memory());
  float* means = lines + (params.span < kLines ? kLines : params.span);
  float* squares = means + params.span / part.group;
  const float share = 1.0f / (float(part.end - part.begin) * float(part.group));
  for (int64_t row = blockIdx.z; row < op.rows; row += gridDim.z) {
    sum_groups<T, vector, false>(op, part, row, lines, means, nullptr);
    for (int g = threadIdx.x; g < part.groups(); g += kThreads) means[g] *= share;
    __syncthreads();
    sum_groups<T, vector, true>(op, part, row, lines, squares, means);
    const int64_t first = (row * op.chunks + blockIdx.x) * op.groups + part.from / part.group;
    for (int g = threadIdx.x; g < part.groups(); g += kThreads) {
      op.moments[2 * (first + g)] = means[g];
      op.moments[2 * (first + g) + 1] = squares[g];
    }
    __syncthreads();
  }
}

// Mean and inverse deviation of a group, of all chunks of the row; a warp has it.
__device__ float2 joined(const Params& params, int64_t row, int64_t group) {
  const GroupNorm& op = params.op;
  const int lane = threadIdx.x % 32;
  const float* moments = op.moments + 2 * (row * op.chunks * op.groups + group);
  const float channels = float(op.C / op.groups), all = float(op.tokens);
  const auto tokens = [&](int64_t chunk) {
    const int64_t rest = op.tokens - chunk * params.chunk;
    return float(rest < params.chunk ? rest : params.chunk);
  };
  float sum = 0.0f, squares = 0.0f;
  for (int64_t i = lane; i < op.chunks; i += 32) {
    sum += tokens(i) / all * moments[2 * i * op.groups];
  }
  const float mean = warp_sum(sum);
  for (int64_t i = lane; i < op.chunks; i += 32) {
    const float distance = moments[2 * i * op.groups] - mean;
    squares += moments[2 * i * op.groups + 1] + tokens(i) * channels * distance * distance;
  }
  return {mean, 1.0f / sqrtf(warp_sum(squares) / (all * channels) + op.eps)};
}

template <typename T, bool vector>
__device__ void norm_tokens(const GroupNorm& op, const Part& part, int64_t row,
                            const float2* groups) {
  const Place place(part.span);
  for (int column = place.column; column < place.columns; column += kThreads) {
    if (place.idle()) break;
    const int at = column * kOctet;
    const int64_t c = part.from + at, count = part.span - at;
    const Features shift = shifts<T, vector>(op, row, c, count);
    Features scale = load_table<T>(vector, op.weight, op.affine_dtype, c, count, 1.0f);
    const Features bias = load_table<T>(vector, op.bias, op.affine_dtype, c, count, 0.0f);
    Features mean;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const float2 group = groups[part.group_of(at + e)];
      mean.value[e] = group.x;
      scale.value[e] *= group.y;
    }
#pragma unroll 2
    for (int64_t token = part.begin + place.lane; token < part.end; token += place.lanes) {
      const int64_t from = row * op.row_stride + token * op.token_stride + c;
      Features z = load_features<T>(vector, op.x, from, count);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) {
        const float centred = z.value[e] + shift.value[e] - mean.value[e];
        const float out = centred * scale.value[e] + bias.value[e];
        z.value[e] = op.silu ? out / (1.0f + expf(-out)) : out;
      }
      store_features<T>(vector, op.out, (row * op.tokens + token) * op.out_stride + c, count, z);
    }
  }
}

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads) norm_kernel(Params params) {
  const GroupNorm& op = params.op;
  const Part part(params);
  float2* groups = reinterpret_cast<float2*>(shared_memory());
  for (int64_t row = blockIdx.z; row < op.rows; row += gridDim.z) {
    for (int g = threadIdx.x / 32; g < part.groups(); g += kThreads / 32) {
      const float2 found = joined(params, row, part.from / part.group + g);
      if (threadIdx.x % 32 == 0) groups[g] = found;
    }
    __syncthreads();
    norm_tokens<T, vector>(op, part, row, groups);
    __syncthreads();
  }
}

bool in_vectors(const GroupNorm& op, int64_t span) {
  return span % kOctet == 0 && op.C % kOctet == 0 && starts_aligned(op.x, op.token_stride) &&
         op.row_stride % kOctet == 0 && starts_aligned(op.out, op.out_stride) &&
         starts_aligned(op.shift, op.shift_stride) && aligned(op.weight, 16) &&
         aligned(op.bias, 16);
}

// Channels of a block: the C in equal parts of about kSpan, each of whole groups, and of whole
// octets where groups allow.
int64_t span_of(const GroupNorm& op) {
  const int64_t group = op.C / op.groups, unit = std::lcm(group, int64_t(kOctet));
  const int64_t step = op.C % unit == 0 ? unit : group;
  const int64_t steps = op.C / step, parts = std::min(steps, ceil_div(op.C, kSpan));
  return step * ceil_div(steps, parts);
}

}  // namespace

void group_norm(const GroupNorm& op, const Stream& stream) {
  if (op.rows * op.tokens * op.C == 0) return;
  const int64_t span = span_of(op), groups = span / (op.C / op.groups);
  const Params params{op, ceil_div(op.tokens, op.chunks), int(span)};
  const dim3 grid(unsigned(op.chunks), unsigned(ceil_div(op.C, span)),
                  unsigned(std::min(op.rows, kMaxGrid)));
  const int shared = int((std::max(span, int64_t(kLines)) + 2 * groups) * sizeof(float));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const bool vector = in_vectors(op, span);
    const auto moments = vector ? moments_kernel<T, true> : moments_kernel<T, false>;
    const auto norm = vector ? norm_kernel<T, true> : norm_kernel<T, false>;
    launch("group_norm", moments, grid, kThreads, shared, stream, params);
    launch("group_norm", norm, grid, kThreads, int(groups * sizeof(float2)), stream, params);
  });
}

}  // namespace cmlora::cuda
