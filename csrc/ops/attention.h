#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace cmlora {

// out[r, i] = Σ_j softmax_j(scale · q[r, i] · k[r, j]) v[r, j], for every head by itself.
struct AttentionInput {
  const void* data;  // [rows, tokens, heads * D], last dimension contiguous
  int64_t row_stride;
  int64_t token_stride;
};

struct Attention {
  void* out;   // [rows, queries, heads * D], contiguous
  float* lse;  // [rows, heads, queries], log Σ_j exp of the scaled scores, or null
  AttentionInput q;
  AttentionInput k;
  AttentionInput v;
  int64_t rows;
  int64_t queries;
  int64_t keys;
  int64_t heads;
  int64_t D;
  float scale;
  DType dtype;
};

struct AttentionBackward {
  void* dq;           // as q, contiguous
  void* dk;           // as k, contiguous, or null
  void* dv;           // as v, contiguous; null where dk is
  const void* dout;   // as out
  Attention forward;  // what it was given and gave, with lse
};

namespace cpu {
void attention(const Attention& op, int isa);
void attention_backward(const AttentionBackward& op, int isa);
}  // namespace cpu

}  // namespace cmlora
