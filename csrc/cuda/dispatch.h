#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace cmlora::cuda {

constexpr int64_t kMaxGrid = 65535;  // blocks of a grid along its second axis

// Calls body with a value of the element type.
template <typename Body>
void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
  }
}

inline bool aligned(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cmlora::cuda
