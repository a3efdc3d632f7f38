#pragma once

#include "cuda/ptx.h"

// What the lanes of a whole warp have, brought together in one order; every lane gets it.

namespace cmlora::cuda {

template <typename Value>
__device__ Value warp_sum(Value value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

template <typename Value>
__device__ Value warp_min(Value value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const Value other = __shfl_xor_sync(kWholeWarp, value, distance);
    value = other < value ? other : value;
  }
  return value;
}

template <typename Value>
__device__ Value warp_max(Value value) {
  return -warp_min(-value);
}

}  // namespace cmlora::cuda
