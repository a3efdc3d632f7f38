#pragma once

#include "cuda/ptx.h"

// Tiles of 16 rows and 32 columns, spread over a warp: with g = lane / 4 and t = lane % 4, a lane
// holds the octet of columns 8t .. 8t + 7 of rows g ("top") and g + 8 ("bottom"). So every load is
// 16 bytes wide, and as the order inside a sum is free, octets are operands of mma.sync as they
// are: both sides of a product count their common dimension in the same permuted order.

namespace cmlora::cuda {

constexpr int kOctet = 8;
constexpr int kTile = 4 * kOctet;  // columns of a tile

struct Lane {
  int g;
  int t;
};

__device__ inline Lane this_lane() {
  const int lane = threadIdx.x % 32;
  return {lane / 4, lane % 4};
}

// The column that lane (g, t) supplies to product j of four; its own sums are then those of its
// columns 8t + 2j and 8t + 2j + 1.
__device__ inline int tile_column(int g, int j) { return kOctet * (g / 2) + 2 * j + g % 2; }

// Eight elements; for 16-bit types in pairs.
template <typename T>
struct alignas(16) Octet {
  uint32_t pair[4];

  __device__ float2 get(int i) const { return unpack<T>(pair[i]); }
  __device__ void set(int i, float first, float second) { pair[i] = pack<T>(first, second); }
};

template <>
struct alignas(16) Octet<float> {
  float value[8];

  __device__ float2 get(int i) const { return {value[2 * i], value[2 * i + 1]}; }
  __device__ void set(int i, float first, float second) {
    value[2 * i] = first;
    value[2 * i + 1] = second;
  }
};

template <typename T>
__device__ Octet<T> no_octet() {
  Octet<T> octet;
#pragma unroll
  for (int i = 0; i < 4; ++i) octet.set(i, 0.0f, 0.0f);
  return octet;
}

// The first `count` of eight elements, zeros after them. `vector`: they are contiguous and lie on
// 16 bytes, and count is at least 8 or at most 0.
template <typename T>
__device__ Octet<T> load_octet(bool vector, const T* from, int64_t stride, int64_t count) {
  Octet<T> octet = no_octet<T>();
  if (vector) {
    if (count > 0) {
      uint4* parts = reinterpret_cast<uint4*>(&octet);
#pragma unroll
      for (int i = 0; i < int(sizeof(octet) / 16); ++i) {
        parts[i] = reinterpret_cast<const uint4*>(from)[i];
      }
    }
    return octet;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float first = 2 * i < count ? to_float(from[2 * i * stride]) : 0.0f;
    const float second = 2 * i + 1 < count ? to_float(from[(2 * i + 1) * stride]) : 0.0f;
    octet.set(i, first, second);
  }
  return octet;
}

template <typename T>
__device__ void store_octet(bool vector, T* to, int64_t count, const Octet<T>& octet) {
  if (vector) {
    if (count > 0) {
      const uint4* parts = reinterpret_cast<const uint4*>(&octet);
#pragma unroll
      for (int i = 0; i < int(sizeof(octet) / 16); ++i) reinterpret_cast<uint4*>(to)[i] = parts[i];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 values = octet.get(i);
    if (2 * i < count) from_float(values.x, to + 2 * i);
    if (2 * i + 1 < count) from_float(values.y, to + 2 * i + 1);
  }
}

// acc += rows · columnsᵀ over the 32 elements of a tile: acc[j] are the sums of product j, two of
// the top row and two of the bottom row; columns[j] is the octet of column tile_column(g, j).
template <typename T>
__device__ void multiply(float (&acc)[4][4], const Octet<T>& top, const Octet<T>& bottom,
                         const Octet<T> (&columns)[4]) {
#pragma unroll
  for (int half = 0; half < 4; half += 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      mma16x8x16<T>(acc[j], top.pair[half], bottom.pair[half], top.pair[half + 1],
                    bottom.pair[half + 1], columns[j].pair[half], columns[j].pair[half + 1]);
    }
  }
}

// Tensor cores round float32 to 19 bits: lanes pass the elements around and multiply them instead.
template <>
__device__ inline void multiply<float>(float (&acc)[4][4], const Octet<float>& top,
                                       const Octet<float>& bottom,
                                       const Octet<float> (&columns)[4]) {
  const int lane = threadIdx.x % 32, quad = lane & ~3, pair = 8 * (lane % 4);
#pragma unroll 1
  for (int from = 0; from < 4; ++from) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float x0 = __shfl_sync(kWholeWarp, top.value[e], quad + from);
      const float x1 = __shfl_sync(kWholeWarp, bottom.value[e], quad + from);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float w0 = __shfl_sync(kWholeWarp, columns[j].value[e], pair + from);
        const float w1 = __shfl_sync(kWholeWarp, columns[j].value[e], pair + 4 + from);
        acc[j][0] = fmaf(x0, w0, acc[j][0]);
        acc[j][1] = fmaf(x0, w1, acc[j][1]);
        acc[j][2] = fmaf(x1, w0, acc[j][2]);
        acc[j][3] = fmaf(x1, w1, acc[j][3]);
      }
    }
  }
}

}  // namespace cmlora::cuda
