#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace cmlora {

// z = x[r] + shift[r], out[r] = silu?((z - mean) / sqrt(variance + eps) · weight + bias), mean and
// variance over the tokens and the C / groups channels of a group.
struct GroupNorm {
  void* out;            // [rows, tokens, C], contiguous
  const void* x;        // [rows, tokens, C], last dimension contiguous
  const float* shift;   // [rows, C], contiguous, or null
  const float* weight;  // [C]
  const float* bias;    // [C]
  int64_t rows;
  int64_t tokens;
  int64_t C;
  int64_t groups;
  int64_t row_stride;  // of x
  int64_t token_stride;
  float eps;
  bool silu;
  DType dtype;
};

namespace cpu {
void group_norm(const GroupNorm& op, int isa);
}

}  // namespace cmlora
