#pragma once

#include "cuda/row_octets.h"

// What lora_delta_ keeps between shrinking and expanding: a tile of 16 tokens and 32 ranks per
// warp.

namespace cmlora::cuda {

constexpr int kDeltaWarps = 4;
constexpr int kDeltaThreads = 32 * kDeltaWarps;

// Two numbers that add up to one float32 times a power of two: half precision keeps neither the
// digits nor the range of a sum.
template <typename T>
struct Sums {
  Octet<T> top_high, top_low, bottom_high, bottom_low;
};

template <>
struct Sums<float> {
  Octet<float> top, bottom;
};

// What a lane keeps of a tile of ranks, in parts of 16 bytes; factors undo the power of two.
template <typename T>
struct Kept {
  Sums<T> sums;
  float2 factors;
};

constexpr int kParts = 4;
static_assert(sizeof(Sums<float>) == 16 * kParts && sizeof(Sums<BFloat16>) == 16 * kParts, "");
constexpr int kGroupBytes =
    kDeltaThreads * (16 * kParts + 8) + kDeltaWarps * 4 * int(sizeof(RankOctet));

struct Shared {
  uint4* parts;      // [groups, kParts, kDeltaThreads]
  float2* factors;   // [groups, kDeltaThreads]
  RankOctet* ranks;  // [4 groups] of this warp

  __device__ explicit Shared(int groups) {
    parts = reinterpret_cast<uint4*>(shared_memory());
    factors = reinterpret_cast<float2*>(parts + groups * kParts * kDeltaThreads);
    ranks = reinterpret_cast<RankOctet*>(factors + groups * kDeltaThreads);
    ranks += threadIdx.x / 32 * 4 * groups;
  }

  template <typename T>
  __device__ void store(int group, const Kept<T>& kept) const {
    const uint4* from = reinterpret_cast<const uint4*>(&kept.sums);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      parts[(group * kParts + i) * kDeltaThreads + threadIdx.x] = from[i];
    }
    factors[group * kDeltaThreads + threadIdx.x] = kept.factors;
  }

  template <typename T>
  __device__ Kept<T> load(int group) const {
    Kept<T> kept;
    uint4* to = reinterpret_cast<uint4*>(&kept.sums);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      to[i] = parts[(group * kParts + i) * kDeltaThreads + threadIdx.x];
    }
    kept.factors = factors[group * kDeltaThreads + threadIdx.x];
    return kept;
  }
};

// The power of two below the largest of a row's 32 sums; 1 where that has no inverse.
template <typename T>
__device__ float power_below(const float (&sums)[kOctet]) {
  float top = 0.0f;
#pragma unroll
  for (int e = 0; e < kOctet; ++e) top = fmaxf(top, fabsf(sums[e]));
  top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
  top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
  const uint32_t exponent = float_bits(top) & 0x7f800000u;
  return exponent > 0 && exponent < 0x7f000000u ? bits_float(exponent) : 1.0f;
}

template <typename T>
__device__ void split(const float (&sums)[kOctet], float factor, Octet<T>* high, Octet<T>* low) {
  const float inverse = 1.0f / factor;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float first = sums[2 * i] * inverse, second = sums[2 * i + 1] * inverse;
    high->set(i, first, second);
    const float2 kept = high->get(i);
    const float rest_first = first - kept.x, rest_second = second - kept.y;
    // Infinity less infinity: what is infinite has no digits to keep.
    low->set(i, rest_first == rest_first ? rest_first : 0.0f,
             rest_second == rest_second ? rest_second : 0.0f);
  }
}

template <typename T>
__device__ Kept<T> keep(const float (&top)[kOctet], const float (&bottom)[kOctet]) {
  Kept<T> kept;
  kept.factors = {power_below<T>(top), power_below<T>(bottom)};
  split<T>(top, kept.factors.x, &kept.sums.top_high, &kept.sums.top_low);
  split<T>(bottom, kept.factors.y, &kept.sums.bottom_high, &kept.sums.bottom_low);
  return kept;
}

template <>
__device__ inline Kept<float> keep<float>(const float (&top)[kOctet],
                                          const float (&bottom)[kOctet]) {
  Kept<float> kept;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    kept.sums.top.set(i, top[2 * i], top[2 * i + 1]);
    kept.sums.bottom.set(i, bottom[2 * i], bottom[2 * i + 1]);
  }
  kept.factors = {1.0f, 1.0f};
  return kept;
}

template <typename T>
__device__ void expand(float (&acc)[4][4], const Kept<T>& kept, const Octet<T> (&columns)[4]) {
  float part[4][4] = {};
  multiply<T>(part, kept.sums.top_low, kept.sums.bottom_low, columns);
  multiply<T>(part, kept.sums.top_high, kept.sums.bottom_high, columns);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    acc[j][0] = fmaf(part[j][0], kept.factors.x, acc[j][0]);
    acc[j][1] = fmaf(part[j][1], kept.factors.x, acc[j][1]);
    acc[j][2] = fmaf(part[j][2], kept.factors.y, acc[j][2]);
    acc[j][3] = fmaf(part[j][3], kept.factors.y, acc[j][3]);
  }
}

template <>
__device__ inline void expand<float>(float (&acc)[4][4], const Kept<float>& kept,
                                     const Octet<float> (&columns)[4]) {
  multiply<float>(acc, kept.sums.top, kept.sums.bottom, columns);
}

}  // namespace cmlora::cuda
