#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace cmlora {

// Static, as in fft.h. floor(sqrt(n)): the root in floating point is one off at most.
static inline CMLORA_HOST_DEVICE int64_t floor_root(int64_t n) {
  int64_t root = int64_t(std::sqrt(float(n)));
  while (root * root > n) --root;
  while ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

// Integer distance of a frequency from zero.
static inline CMLORA_HOST_DEVICE int64_t radius(int64_t ky, int64_t kx) {
  return floor_root(ky * ky + kx * kx);
}

// |kx| of the frequencies at distance r in row ky <= r run from `first` to `last`.
struct Arc {
  int64_t first;
  int64_t last;
};

static inline CMLORA_HOST_DEVICE Arc arc(int64_t r, int64_t ky) {
  const int64_t inner = r * r - ky * ky;
  const int64_t root = floor_root(inner);
  return {root * root == inner ? root : root + 1, floor_root((r + 1) * (r + 1) - 1 - ky * ky)};
}

}  // namespace cmlora
