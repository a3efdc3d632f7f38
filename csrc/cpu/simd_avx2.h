#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/dtype.h"

namespace cmlora::cpu {

struct Avx2Simd {
  static constexpr const char* kName = "avx2";
  static constexpr int64_t kWidth = 8;
  static constexpr int kTile = 6;  // 6 x 2 sums, 2 columns and 1 broadcast fill 15 of 16 registers

  using Reg = __m256;

  static Reg set(float value) { return _mm256_set1_ps(value); }

  static Reg load(const float* from) { return _mm256_loadu_ps(from); }

  static Reg load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }

  static Reg load(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  static void store(float* to, Reg value) { _mm256_storeu_ps(to, value); }

  static void store(BFloat16* to, Reg value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    __m256i result = _mm256_blendv_epi8(_mm256_add_epi32(bits, half), quiet, is_nan);
    result = _mm256_srli_epi32(result, 16);
    result = _mm256_packus_epi32(result, result);  // within 128-bit halves: 0 and 2 hold the values
    result = _mm256_permute4x64_epi64(result, 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(result));
  }

  static void store(Float16* to, Reg value) {
    const __m128i bits = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bits);
  }

  // The lower and the upper halves of p and q, lane by lane in turn: p, q, p, q, ...
  static Reg mix_low(Reg p, Reg q) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q), 0x20);
  }

  static Reg mix_high(Reg p, Reg q) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q), 0x31);
  }

  static Reg add(Reg p, Reg q) { return _mm256_add_ps(p, q); }
  static Reg sub(Reg p, Reg q) { return _mm256_sub_ps(p, q); }
  static Reg mul(Reg p, Reg q) { return _mm256_mul_ps(p, q); }
  static Reg div(Reg p, Reg q) { return _mm256_div_ps(p, q); }
  static Reg max(Reg p, Reg q) { return _mm256_max_ps(p, q); }  // q where either is NaN
  static Reg fma(Reg p, Reg q, Reg sum) { return _mm256_fmadd_ps(p, q, sum); }

  static Reg round(Reg value) {
    return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  // value · 2^whole, for a whole number of -126 to 127.
  static Reg times_exp2(Reg value, Reg whole) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
  }

  // to[0 .. 3] += the sums of the lanes of p, q, u, v.
  static void add_sums(Reg p, Reg q, Reg u, Reg v, float* to) {
    const Reg all = _mm256_hadd_ps(_mm256_hadd_ps(p, q), _mm256_hadd_ps(u, v));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
  }
};

}  // namespace cmlora::cpu
