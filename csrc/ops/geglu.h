#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// out[i] = x[i, :N] · gelu(x[i, N:]), with gelu(g) = g Φ(g).
struct Geglu {
  void* out;      // [tokens, N], last dimension contiguous
  const void* x;  // [tokens, 2N], contiguous
  int64_t tokens;
  int64_t N;
  int64_t out_stride;  // of tokens
  DType dtype;
};

// dx[i, :N] = dout[i] · gelu(x[i, N:]) and dx[i, N:] = dout[i] · x[i, :N] · gelu'(x[i, N:]).
struct GegluBackward {
  void* dx;          // [tokens, 2N], contiguous
  const void* dout;  // [tokens, N], contiguous
  const void* x;     // [tokens, 2N], contiguous
  int64_t tokens;
  int64_t N;
  DType dtype;
};

namespace cpu {
void geglu(const Geglu& op, int isa);
void geglu_backward(const GegluBackward& op, int isa);
}  // namespace cpu

namespace cuda {
void geglu(const Geglu& op, const Stream& stream);
}

}  // namespace cmlora
