#pragma once

#include <cstdint>

namespace cmlora {

// How the planes [C, H, W] of two tensors fall into runs that are contiguous in both.
struct Runs {
  int64_t length;  // elements of a run
  int64_t outer;   // runs along C
  int64_t inner;   // runs along H
};

// c_stride and h_stride of each tensor, in elements; W is contiguous.
inline Runs find_runs(int64_t C, int64_t H, int64_t W, const int64_t p[2], const int64_t q[2]) {
  if (H > 1 && (p[1] != W || q[1] != W)) return {W, C, H};
  if (C > 1 && (p[0] != H * W || q[0] != H * W)) return {H * W, C, 1};
  return {C * H * W, 1, 1};
}

}  // namespace cmlora
