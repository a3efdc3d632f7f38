#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"

// csrc/cuda/ptx.h on the CPU. Where elements of a fragment lie is written down again, from the
// tables of PTX ISA 9.7.14.5.8 (mma.m16n8k16), and not shared with the kernels.

namespace cmlora::cuda {

unsigned char* shared_memory();

constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename T>
uint32_t pack(float first, float second) {
  T low, high;
  from_float(first, &low);
  from_float(second, &high);
  return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}

template <typename T>
float2 unpack(uint32_t pair) {
  return {to_float(T{uint16_t(pair)}), to_float(T{uint16_t(pair >> 16)})};
}

struct Fragments {
  uint32_t a[4];
  uint32_t b[2];
};

// Element i of a lane's fragment.
template <typename T>
float element(const uint32_t* registers, int i) {
  const float2 values = unpack<T>(registers[i / 2]);
  return i % 2 ? values.y : values.x;
}

template <typename T>
void mma16x8x16(float (&acc)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1) {
  const Fragments mine{{a0, a1, a2, a3}, {b0, b1}};
  const auto* warp = reinterpret_cast<const Fragments*>(host_cuda::exchange(&mine, sizeof(mine)));
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, thread = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const int column = thread * 2 + (i & 1) + (i < 4 ? 0 : 8);
      a[row][column] = element<T>(warp[lane].a, i);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = thread * 2 + (i & 1) + (i < 2 ? 0 : 8);
      b[row][group] = element<T>(warp[lane].b, i);
    }
  }
  const int group = int(threadIdx.x % 32) >> 2, thread = int(threadIdx.x % 4);
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8, column = thread * 2 + (i & 1);
    double sum = acc[i];
    for (int k = 0; k < 16; ++k) sum += double(a[row][k]) * double(b[k][column]);
    acc[i] = float(sum);
  }
}

}  // namespace cmlora::cuda
