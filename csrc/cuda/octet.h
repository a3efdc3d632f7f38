#pragma once

#include "cuda/ptx.h"

// Eight neighbouring elements, which 16-bit types load and store at once.

namespace cmlora::cuda {

constexpr int kOctet = 8;

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

}  // namespace cmlora::cuda
