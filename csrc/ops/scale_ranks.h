#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// h[r, i, k] *= scales[r, k], where 0 times anything is 0.
struct ScaleRanks {
  void* h;              // [rows, tokens, R], last dimension contiguous
  const float* scales;  // [rows, R], contiguous
  int64_t rows;
  int64_t tokens;
  int64_t R;
  int64_t row_stride;  // of h
  int64_t token_stride;
  DType dtype;
};

namespace cuda {
void scale_ranks(const ScaleRanks& op, const Stream& stream);
}

}  // namespace cmlora
