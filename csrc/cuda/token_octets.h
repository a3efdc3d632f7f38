#pragma once

#include "cuda/dispatch.h"
#include "cuda/octet.h"

// Eight features of a token as a thread of a pointwise kernel has them, in float32.

namespace cmlora::cuda {

struct Features {
  float value[kOctet];
};

// `count` of eight; see load_octet.
template <typename T>
__device__ Features load_features(bool vector, const void* from, int64_t at, int64_t count) {
  const Octet<T> octet = load_octet<T>(vector, static_cast<const T*>(from) + at, 1, count);
  Features features;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = octet.get(i);
    features.value[2 * i] = pair.x;
    features.value[2 * i + 1] = pair.y;
  }
  return features;
}

// Of a table of float32 or T; `otherwise` where there is none.
template <typename T>
__device__ Features load_table(bool vector, const void* from, DType dtype, int64_t at,
                               int64_t count, float otherwise) {
  if (from && dtype == DType::kFloat32) return load_features<float>(vector, from, at, count);
  if (from) return load_features<T>(vector, from, at, count);
  Features features;
#pragma unroll
  for (float& value : features.value) value = otherwise;
  return features;
}

template <typename T>
__device__ Octet<T> rounded(const Features& features) {
  Octet<T> octet;
#pragma unroll
  for (int i = 0; i < 4; ++i) octet.set(i, features.value[2 * i], features.value[2 * i + 1]);
  return octet;
}

template <typename T>
__device__ void store_features(bool vector, void* to, int64_t at, int64_t count,
                               const Features& features) {
  store_octet<T>(vector, static_cast<T*>(to) + at, count, rounded<T>(features));
}

// Whether tokens of `stride` elements from this address start on 16 bytes.
inline bool starts_aligned(const void* address, int64_t stride) {
  return aligned(address, 16) && stride % kOctet == 0;
}

inline int64_t octets(int64_t features) { return ceil_div(features, kOctet); }

}  // namespace cmlora::cuda
