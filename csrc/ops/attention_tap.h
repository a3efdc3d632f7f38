#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// maps[r, i, c] = Σ_h p_h[r, i, columns[c]] with p_h[r, i] = softmax_j(scale · q[r, i, h] · k[r, j,
// h]): what all heads h attend to a few of the keys j. A head's D features stand side by side.
struct AttentionTap {
  float* maps;             // [rows, queries, C], contiguous; written by attention_tap
  const float* grad;       // dL/d maps, likewise; read by attention_tap_backward
  void* slope;             // dL/d q [rows, queries, heads * D], contiguous; written by it
  const void* q;           // [rows, queries, heads * D]
  const void* k;           // [rows, keys, heads * D]
  const int32_t* columns;  // [C], of keys
  int64_t rows;
  int64_t queries;
  int64_t keys;
  int64_t heads;
  int64_t D;
  int64_t C;
  int64_t q_strides[2];  // of rows and tokens; features are dense
  int64_t k_strides[2];
  float scale;
  DType dtype;
};

namespace cuda {
void attention_tap(const AttentionTap& op, const Stream& stream);
void attention_tap_backward(const AttentionTap& op, const Stream& stream);

// Whether a warp holds the scores of so many keys; a prompt's 77 it does.
bool attention_tap_fits(int64_t keys);
}  // namespace cuda

}  // namespace cmlora
