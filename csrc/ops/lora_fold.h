#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/row_table.h"
#include "ops/stream.h"

namespace cmlora {

// out[r] = w + Σ_k scale_k · B_k A_k over the table entries k of row r.
struct LoraFold {
  void* out;      // [rows, N, K], contiguous
  const void* w;  // [N, K], last dimension contiguous
  Matrix a;       // [ΣR, K]
  Matrix b;       // [N, ΣR]
  RowTable table;
  int64_t K;
  int64_t N;
  int64_t w_stride;
  DType dtype;
};

namespace cpu {
void lora_fold(const LoraFold& op, int isa);
}

namespace cuda {
void lora_fold(const LoraFold& op, const Stream& stream);
}

}  // namespace cmlora
