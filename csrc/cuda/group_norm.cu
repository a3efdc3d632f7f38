#include "ops/group_norm.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

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
constexpr int kBlocks = vector ? 3 : 2;  // of a processor, for which registers shall suffice
template <typename T>
constexpr int kAhead = 8 / int(sizeof(T));  // loads that a thread starts at once
constexpr int kLines = kThreads * kOctet;   // a float for every channel and lane of a block
constexpr int kMostChunks = 64;             // a lane has two of them
constexpr int64_t kSpan = 96;  // channels of a block, at least where groups are that wide

struct Params {
  GroupNorm op;
  int chunk;  // tokens of a block
  int span;   // channels of a block, whole groups and, in vectors, whole octets
};

// The part of the work that a block has: channels from .. from + span of tokens begin .. end; and
// which columns, of eight channels each, and which of the tokens its threads take.
struct Part {
  int64_t from;
  int begin, end, span, group, columns, lanes, lane, column;

  __device__ explicit Part(const Params& params) {
    const GroupNorm& op = params.op;
    from = int64_t(blockIdx.y) * params.span;
    span = int(op.C - from < params.span ? op.C - from : params.span);
    begin = int(blockIdx.x) * params.chunk;
    end = int(op.tokens) - begin < params.chunk ? int(op.tokens) : begin + params.chunk;
    group = int(op.C / op.groups);
    columns = (span + kOctet - 1) / kOctet;
    lanes = columns < kThreads ? kThreads / columns : 1;
    lane = columns < kThreads ? threadIdx.x / columns : 0;
    column = columns < kThreads ? threadIdx.x % columns : threadIdx.x;
  }
  // Of a channel of the block; past its end, any.
  __device__ int group_of(int channel) const { return channel < span ? channel / group : 0; }
  __device__ int groups() const { return span / group; }

  __device__ int64_t at(const GroupNorm& op, int64_t row, int64_t token, int64_t c) const {
    return row * op.row_stride + token * op.token_stride + from + c;
  }
};

// Of a table of float32 or T; 0 where there is none.
template <typename T>
__device__ float number(const void* table, DType dtype, int64_t at) {
  if (!table) return 0.0f;
  if (dtype == DType::kFloat32) return static_cast<const float*>(table)[at];
  return to_float(static_cast<const T*>(table)[at]);
}

// Sums and squares over a thread's tokens of what eight channels differ from the block's first
// token, so that a large mean takes no digits from the variance.
template <typename T, bool vector>
__device__ void sum_column(const GroupNorm& op, const Part& part, int64_t row, int c, float* sums,
                           float* squares) {
  const int64_t count = part.span - c;
  const auto load = [&](int token) {
    return load_octet<T>(vector, static_cast<const T*>(op.x) + part.at(op, row, token, c), 1,
                         count);
  };
  const Octet<T> first = load(part.begin);
  Features sum = {}, square = {};
  for (int token = part.begin + part.lane; token < part.end; token += kAhead<T> * part.lanes) {
    Octet<T> octets[kAhead<T>];
#pragma unroll
    for (int i = 0; i < kAhead<T>; ++i) {
      const int at = token + i * part.lanes;
      octets[i] = at < part.end ? load(at) : first;
    }
#pragma unroll
    for (int i = 0; i < kAhead<T>; ++i) {
#pragma unroll
      for (int e = 0; e < kOctet; e += 2) {
        const float2 x = octets[i].get(e / 2), pivot = first.get(e / 2);
        const float left = x.x - pivot.x, right = x.y - pivot.y;
        sum.value[e] += left;
        sum.value[e + 1] += right;
        square.value[e] = fmaf(left, left, square.value[e]);
        square.value[e + 1] = fmaf(right, right, square.value[e + 1]);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    if (e < count) {
      sums[part.lane * part.span + c + e] = sum.value[e];
      squares[part.lane * part.span + c + e] = square.value[e];
    }
  }
}

// Mean and squares of a block's channels, from those of its lanes.
template <typename T>
__device__ void join_lanes(const GroupNorm& op, const Part& part, int64_t row, float* sums,
                           float* squares) {
  const float tokens = float(part.end - part.begin);
  for (int c = threadIdx.x; c < part.span; c += kThreads) {
    float sum = 0.0f, square = 0.0f;
    for (int lane = 0; lane < part.lanes; ++lane) {
      sum += sums[lane * part.span + c];
      square += squares[lane * part.span + c];
    }
    const float pivot = to_float(static_cast<const T*>(op.x)[part.at(op, row, part.begin, c)]);
    const int64_t channel = row * op.shift_stride + part.from + c;
    const float mean = sum / tokens;
    sums[c] = pivot + mean + number<T>(op.shift, op.shift_dtype, channel);
    const float around = square - sum * mean;
    squares[c] = around < 0.0f ? 0.0f : around;  // NaN stays
  }
}

// Those of its groups, a warp each.
__device__ void join_channels(const GroupNorm& op, const Part& part, int64_t row,
                              const float* means, const float* squares) {
  const int lane = threadIdx.x % 32;
  const float tokens = float(part.end - part.begin);
  const int64_t first = (row * op.chunks + blockIdx.x) * op.groups + part.from / part.group;
  for (int g = threadIdx.x / 32; g < part.groups(); g += kThreads / 32) {
    const float* channels = means + g * part.group;
    float sum = 0.0f, around = 0.0f;
    for (int c = lane; c < part.group; c += 32) sum += channels[c];
    const float mean = warp_sum(sum) / float(part.group);
    for (int c = lane; c < part.group; c += 32) {
      const float distance = channels[c] - mean;
      around += squares[g * part.group + c] + tokens * distance * distance;
    }
    around = warp_sum(around);
    if (lane == 0) {
      op.moments[2 * (first + g)] = mean;
      op.moments[2 * (first + g) + 1] = around;
    }
  }
}

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads, kBlocks<vector>) moments_kernel(Params params) {
  const GroupNorm& op = params.op;
  const Part part(params);
  float* sums = reinterpret_cast<float*>(shared_memory());
  float* squares = sums + (params.span < kLines ? kLines : params.span);
  for (int64_t row = blockIdx.z; row < op.rows; row += gridDim.z) {
    for (int column = part.column; column < part.columns; column += kThreads) {
      if (part.lane >= part.lanes) break;
      sum_column<T, vector>(op, part, row, column * kOctet, sums, squares);
    }
    __syncthreads();
    join_lanes<T>(op, part, row, sums, squares);
    __syncthreads();
    join_channels(op, part, row, sums, squares);
    __syncthreads();
  }
}

// Mean and inverse deviation of a group, of all chunks of the row; a warp has it.
__device__ float2 join_chunks(const Params& params, int64_t row, int64_t group) {
  const GroupNorm& op = params.op;
  const float channels = float(op.C / op.groups), all = float(op.tokens);
  float tokens[2], means[2], squares[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t chunk = threadIdx.x % 32 + 32 * i, rest = op.tokens - chunk * params.chunk;
    const bool there = chunk < op.chunks;
    const float* found = op.moments + 2 * ((row * op.chunks + chunk) * op.groups + group);
    tokens[i] = there ? float(rest < params.chunk ? rest : params.chunk) : 0.0f;
    means[i] = there ? found[0] : 0.0f;
    squares[i] = there ? found[1] : 0.0f;
  }
  const float mean = warp_sum(tokens[0] / all * means[0] + tokens[1] / all * means[1]);
  float around = squares[0] + squares[1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float distance = means[i] - mean;
    around += tokens[i] * channels * distance * distance;
  }
  return {mean, 1.0f / sqrtf(warp_sum(around) / (all * channels) + op.eps)};
}

// What is known of a channel before its group's moments are.
struct Channel {
  float shift, weight, bias;

  template <typename T>
  __device__ static Channel load(const GroupNorm& op, const Part& part, int64_t row, int c) {
    const int64_t at = part.from + c;
    return {number<T>(op.shift, op.shift_dtype, row * op.shift_stride + at),
            number<T>(op.weight, op.affine_dtype, at), number<T>(op.bias, op.affine_dtype, at)};
  }
};

// What brings a block's channels to their norm: out = x · scale + offset. A thread has its first
// channel already.
template <typename T>
__device__ void find_factors(const GroupNorm& op, const Part& part, int64_t row,
                             const Channel& first, const float2* groups, float2* factors) {
  for (int c = threadIdx.x; c < part.span; c += kThreads) {
    const Channel channel = c < kThreads ? first : Channel::load<T>(op, part, row, c);
    const float2 group = groups[c / part.group];
    const float scale = channel.weight * group.y;
    factors[c] = {scale, fmaf(channel.shift - group.x, scale, channel.bias)};
  }
}

template <typename T, bool vector>
__device__ void load_tokens(const GroupNorm& op, const Part& part, int64_t row, int token, int c,
                            Octet<T> (&octets)[kAhead<T>]) {
#pragma unroll
  for (int i = 0; i < kAhead<T>; ++i) {
    const int at = token + i * part.lanes;
    const T* from = static_cast<const T*>(op.x) + part.at(op, row, at, c);
    octets[i] = at < part.end ? load_octet<T>(vector, from, 1, part.span - c) : no_octet<T>();
  }
}

// A thread's columns: of its first one, some tokens are under way before the factors are known.
template <typename T, bool vector>
__device__ void norm_column(const GroupNorm& op, const Part& part, int64_t row, int c,
                            Octet<T> (&ahead)[kAhead<T>], const float2* factors) {
  const int64_t count = part.span - c;
  float2 factor[kOctet];
#pragma unroll
  for (int e = 0; e < kOctet; ++e) factor[e] = factors[c + e < part.span ? c + e : 0];
  for (int token = part.begin + part.lane; token < part.end; token += kAhead<T> * part.lanes) {
    if (token != part.begin + part.lane) load_tokens<T, vector>(op, part, row, token, c, ahead);
#pragma unroll
    for (int i = 0; i < kAhead<T>; ++i) {
      const int at = token + i * part.lanes;
      if (at >= part.end) break;
      Features out;
#pragma unroll
      for (int e = 0; e < kOctet; ++e) {
        const float2 x = ahead[i].get(e / 2);
        const float z = fmaf(e % 2 ? x.y : x.x, factor[e].x, factor[e].y);
        out.value[e] = op.silu ? z / (1.0f + expf(-z)) : z;
      }
      const int64_t to = (row * op.tokens + at) * op.out_stride + part.from + c;
      store_features<T>(vector, op.out, to, count, out);
    }
  }
}

template <typename T, bool vector>
__global__ void __launch_bounds__(kThreads, kBlocks<vector>) norm_kernel(Params params) {
  const GroupNorm& op = params.op;
  const Part part(params);
  float2* factors = reinterpret_cast<float2*>(shared_memory());
  float2* groups = factors + params.span;
  const bool idle = part.lane >= part.lanes || part.column >= part.columns;
  for (int64_t row = blockIdx.z; row < op.rows; row += gridDim.z) {
    Octet<T> ahead[kAhead<T>];
    const int token = part.begin + part.lane;
    if (!idle) load_tokens<T, vector>(op, part, row, token, part.column * kOctet, ahead);
    Channel first = {};
    if (int(threadIdx.x) < part.span) first = Channel::load<T>(op, part, row, threadIdx.x);
    for (int g = threadIdx.x / 32; g < part.groups(); g += kThreads / 32) {
      const float2 found = join_chunks(params, row, part.from / part.group + g);
      if (threadIdx.x % 32 == 0) groups[g] = found;
    }
    __syncthreads();
    find_factors<T>(op, part, row, first, groups, factors);
    __syncthreads();
    for (int column = part.column; column < part.columns && !idle; column += kThreads) {
      const int c = column * kOctet;
      if (column != part.column) load_tokens<T, vector>(op, part, row, token, c, ahead);
      norm_column<T, vector>(op, part, row, c, ahead, factors);
    }
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
  if (op.chunks > kMostChunks) throw std::invalid_argument("group_norm: too many chunks");
  const int64_t span = span_of(op), groups = span / (op.C / op.groups);
  const Params params{op, int(ceil_div(op.tokens, op.chunks)), int(span)};
  const dim3 grid(unsigned(op.chunks), unsigned(ceil_div(op.C, span)),
                  unsigned(std::min(op.rows, kMaxGrid)));
  const int shared = int(2 * std::max(span, int64_t(kLines)) * sizeof(float));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const bool vector = in_vectors(op, span);
    const auto moments = vector ? moments_kernel<T, true> : moments_kernel<T, false>;
    const auto norm = vector ? norm_kernel<T, true> : norm_kernel<T, false>;
    launch("group_norm", moments, grid, kThreads, shared, stream, params);
    launch("group_norm", norm, grid, kThreads, int((span + groups) * sizeof(float2)), stream,
           params);
  });
}

}  // namespace cmlora::cuda
