#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace cmlora {

// Order shared with the table of element types in python/cmlora_fast/ops/_check.py.
enum class DType : int { kFloat32, kBFloat16, kFloat16 };

constexpr int kDTypes = 3;

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

inline int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Conversions have internal linkage: files built for different instruction sets include them, and
// the linker must not let one of those copies stand for the others.
static inline CMLORA_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline CMLORA_HOST_DEVICE float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline CMLORA_HOST_DEVICE float to_float(float value) { return value; }

static inline CMLORA_HOST_DEVICE float to_float(BFloat16 value) {
  return bits_float(uint32_t(value.bits) << 16);
}

static inline CMLORA_HOST_DEVICE float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity and NaN keep an all-ones exponent
    return bits_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // 2^112 moves the exponent from bias 15 to bias 127 and normalises subnormals on the way.
  const float scaled = bits_float(magnitude << 13) * 0x1p112f;
  return bits_float(sign | float_bits(scaled));
}

static inline CMLORA_HOST_DEVICE void from_float(float value, float* out) { *out = value; }

static inline CMLORA_HOST_DEVICE void from_float(float value, BFloat16* out) {
  const uint32_t bits = float_bits(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  out->bits = is_nan ? uint16_t((bits >> 16) | 0x40u) : uint16_t(rounded >> 16);
}

static inline CMLORA_HOST_DEVICE void from_float(float value, Float16* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits =
        uint16_t(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));  // quiet, keeps the payload
  } else if (magnitude >= 0x477ff000u) {
    out->bits = uint16_t(sign | 0x7c00u);  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 lets the float adder round to a multiple of 2^-24.
    out->bits = uint16_t(sign | (float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f)));
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    out->bits = uint16_t(sign | ((rounded - (112u << 23)) >> 13));
  }
}

}  // namespace cmlora
