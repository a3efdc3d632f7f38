#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "ops/stream.h"

namespace cmlora {

// out[i] = x[i] + y[i] + shift.
struct AddShift {
  void* out;          // [tokens, C], last dimension contiguous
  const void* x;      // [tokens, C], contiguous
  const void* y;      // [tokens, C], contiguous
  const void* shift;  // [C]
  int64_t tokens;
  int64_t C;
  int64_t out_stride;  // of tokens
  DType dtype;
  DType shift_dtype;  // float32, or that of x
};

namespace cuda {
void add_shift(const AddShift& op, const Stream& stream);
}

}  // namespace cmlora
