#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/row_table.h"

namespace cmlora {

// y[r] += Σ_k scale_k · (x[r] A_kᵀ) B_kᵀ over the table entries k of row r.
struct LoraDelta {
  void* y;        // [rows, tokens, N], last dimension contiguous
  const void* x;  // [rows, tokens, K], last dimension contiguous
  Matrix a;       // [ΣR, K]
  Matrix b;       // [N, ΣR]
  RowTable table;
  int64_t tokens;
  int64_t K;
  int64_t N;
  int64_t y_row_stride;
  int64_t y_token_stride;
  int64_t x_row_stride;
  int64_t x_token_stride;
  DType dtype;
};

namespace cpu {
void lora_delta(const LoraDelta& op, int isa);
}

}  // namespace cmlora
