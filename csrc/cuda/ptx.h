#pragma once

#include <cstdint>

#include "common/dtype.h"

// The instructions that the kernels use beyond CUDA C++; tests/cuda_host has them for the CPU.

namespace cmlora::cuda {

// A block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Two elements in one register, the first in the lower half.
template <typename T>
__device__ uint32_t pack(float first, float second);

template <>
__device__ inline uint32_t pack<BFloat16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <>
__device__ inline uint32_t pack<Float16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

template <typename T>
__device__ float2 unpack(uint32_t pair);

template <>
__device__ inline float2 unpack<BFloat16>(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

template <>
__device__ inline float2 unpack<Float16>(uint32_t pair) {
  float2 values;
  asm("{\n\t.reg .f16 low, high;\n\tmov.b32 {low, high}, %2;\n\t"
      "cvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
      : "=f"(values.x), "=f"(values.y)
      : "r"(pair));
  return values;
}

// acc [16, 8] += a [16, 16] · b [16, 8] in a warp. With g = lane / 4 and t = lane % 4 a lane holds
//   a: rows g and g + 8 of columns 2t, 2t + 1 (a0, a1), and of 2t + 8, 2t + 9 (a2, a3);
//   b: column g of rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1);
//   acc: columns 2t, 2t + 1 of row g (0, 1) and of row g + 8 (2, 3).
template <typename T>
__device__ void mma16x8x16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma16x8x16<BFloat16>(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma16x8x16<Float16>(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                           uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

constexpr unsigned kWholeWarp = 0xffffffffu;

}  // namespace cmlora::cuda
