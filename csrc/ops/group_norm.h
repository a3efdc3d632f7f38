#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// z = x[r] + shift[r], out[r] = silu?((z - mean) / sqrt(variance + eps) · weight + bias), mean and
// variance over the tokens and the C / groups channels of a group.
struct GroupNorm {
  void* out;           // [rows, tokens, C], last dimension contiguous
  const void* x;       // [rows, tokens, C], last dimension contiguous
  const void* shift;   // [rows, C], last dimension contiguous, or null
  const void* weight;  // [C]
  const void* bias;    // [C]
  float* moments;      // [rows, chunks, groups, 2], of the device's kernels
  int64_t rows;
  int64_t tokens;
  int64_t C;
  int64_t groups;
  int64_t row_stride;  // of x
  int64_t token_stride;
  int64_t out_stride;    // of tokens
  int64_t shift_stride;  // of rows; 0: the same for all
  int64_t chunks;        // that a row's tokens are cut into
  float eps;
  bool silu;
  DType dtype;         // of x and out
  DType affine_dtype;  // of weight and bias: float32, or that of x
  DType shift_dtype;   // float32, or that of x
};

namespace cpu {
// All but x and out float32; out and shift contiguous.
void group_norm(const GroupNorm& op, int isa);
}  // namespace cpu

namespace cuda {
void group_norm(const GroupNorm& op, const Stream& stream);
}

}  // namespace cmlora
