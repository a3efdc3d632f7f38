#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace cmlora::cpu {

// Four floats in plain C++, the interface that the instruction sets implement.
struct ScalarSimd {
  static constexpr const char* kName = "scalar";
  static constexpr int64_t kWidth = 4;
  static constexpr int kTile = 4;

  struct Reg {
    float lane[kWidth];
  };

  static Reg set(float value) { return {{value, value, value, value}}; }

  template <typename T>
  static Reg load(const T* from) {
    return {{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])}};
  }

  template <typename T>
  static void store(T* to, Reg value) {
    for (int64_t i = 0; i < kWidth; ++i) from_float(value.lane[i], to + i);
  }

  static Reg add(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) p.lane[i] += q.lane[i];
    return p;
  }

  static Reg sub(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) p.lane[i] -= q.lane[i];
    return p;
  }

  static Reg fma(Reg p, Reg q, Reg sum) {
    for (int64_t i = 0; i < kWidth; ++i) sum.lane[i] += p.lane[i] * q.lane[i];
    return sum;
  }
};

}  // namespace cmlora::cpu
