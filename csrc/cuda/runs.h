#pragma once

#include "common/host_device.h"
#include "common/planes.h"

namespace cmlora::cuda {

inline CMLORA_HOST_DEVICE int64_t count(const Runs& runs) {
  return runs.outer * runs.inner * runs.length;
}

// Where element i of the planes lies in a tensor.
inline CMLORA_HOST_DEVICE int64_t offset(const Runs& runs, int64_t i, int64_t c_stride,
                                         int64_t h_stride) {
  if (runs.outer == 1 && runs.inner == 1) return i;
  return i / (runs.inner * runs.length) * c_stride + i / runs.length % runs.inner * h_stride +
         i % runs.length;
}

// Whether runs of a tensor can be taken `width` elements at a time.
inline bool divides(int64_t width, const Runs& runs, int64_t c_stride, int64_t h_stride) {
  return runs.length % width == 0 && (runs.outer == 1 || c_stride % width == 0) &&
         (runs.inner == 1 || h_stride % width == 0);
}

}  // namespace cmlora::cuda
