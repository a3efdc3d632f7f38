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

  // The lower and the upper halves of p and q, lane by lane in turn: p, q, p, q, ...
  static Reg mix_low(Reg p, Reg q) { return {{p.lane[0], q.lane[0], p.lane[1], q.lane[1]}}; }
  static Reg mix_high(Reg p, Reg q) { return {{p.lane[2], q.lane[2], p.lane[3], q.lane[3]}}; }

  static Reg add(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) p.lane[i] += q.lane[i];
    return p;
  }

  static Reg sub(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) p.lane[i] -= q.lane[i];
    return p;
  }

  static Reg mul(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) p.lane[i] *= q.lane[i];
    return p;
  }

  static Reg div(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) p.lane[i] /= q.lane[i];
    return p;
  }

  // q where either is NaN
  static Reg max(Reg p, Reg q) {
    for (int64_t i = 0; i < kWidth; ++i) q.lane[i] = p.lane[i] > q.lane[i] ? p.lane[i] : q.lane[i];
    return q;
  }

  static Reg fma(Reg p, Reg q, Reg sum) {
    for (int64_t i = 0; i < kWidth; ++i) sum.lane[i] += p.lane[i] * q.lane[i];
    return sum;
  }

  // 3 · 2^22: a float of this size has no bits for a fraction.
  static constexpr float kShift = 12582912.0f;

  // To nearest, of values within ±2^22.
  static Reg round(Reg value) {
    for (int64_t i = 0; i < kWidth; ++i) value.lane[i] = (value.lane[i] + kShift) - kShift;
    return value;
  }

  // value · 2^whole, for a whole number of -126 to 127.
  static Reg times_exp2(Reg value, Reg whole) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const uint32_t biased = float_bits(whole.lane[i] + kShift) - float_bits(kShift) + 127;
      value.lane[i] *= bits_float(biased << 23);
    }
    return value;
  }
};

}  // namespace cmlora::cpu
