#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// total = x + residual, out = (total - mean) / sqrt(variance + eps) · weight + bias, mean and
// variance over the C features of a token.
struct LayerNorm {
  void* out;             // [tokens, C], last dimension contiguous
  void* total;           // [tokens, C], contiguous; null without residual
  const void* x;         // [tokens, C], contiguous
  const void* residual;  // [tokens, C], contiguous, or null
  const void* weight;    // [C], or null
  const void* bias;      // [C], or null
  int64_t tokens;
  int64_t C;
  int64_t out_stride;  // of tokens
  float eps;
  DType dtype;
  DType affine_dtype;  // of weight and bias: float32, or that of x
};

namespace cuda {
void layer_norm(const LayerNorm& op, const Stream& stream);
}

}  // namespace cmlora
