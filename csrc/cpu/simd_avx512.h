#pragma once

#include <immintrin.h>

#include <cstdint>

#include "common/dtype.h"

namespace cmlora::cpu {

struct Avx512Simd {
  static constexpr const char* kName = "avx512";
  static constexpr int64_t kWidth = 16;
  static constexpr int kTile = 12;  // 12 x 2 sums and 2 columns fill 26 of 32 registers

  using Reg = __m512;

  static Reg set(float value) { return _mm512_set1_ps(value); }

  static Reg load(const float* from) { return _mm512_loadu_ps(from); }

  static Reg load(const BFloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  static Reg load(const Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  static void store(float* to, Reg value) { _mm512_storeu_ps(to, value); }

  static void store(BFloat16* to, Reg value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, half), is_nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16)));
  }

  static void store(Float16* to, Reg value) {
    const __m256i bits = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
  }

  // The lower and the upper halves of p and q, lane by lane in turn: p, q, p, q, ...
  static Reg mix_low(Reg p, Reg q) {
    const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(p, order, q);
  }

  static Reg mix_high(Reg p, Reg q) {
    const __m512i order =
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(p, order, q);
  }

  static Reg add(Reg p, Reg q) { return _mm512_add_ps(p, q); }
  static Reg sub(Reg p, Reg q) { return _mm512_sub_ps(p, q); }
  static Reg mul(Reg p, Reg q) { return _mm512_mul_ps(p, q); }
  static Reg div(Reg p, Reg q) { return _mm512_div_ps(p, q); }
  static Reg max(Reg p, Reg q) { return _mm512_max_ps(p, q); }  // q where either is NaN
  static Reg fma(Reg p, Reg q, Reg sum) { return _mm512_fmadd_ps(p, q, sum); }

  static Reg round(Reg value) {
    return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  // value · 2^whole, for a whole number of -126 to 127.
  static Reg times_exp2(Reg value, Reg whole) { return _mm512_scalef_ps(value, whole); }

  // to[0 .. 3] += the sums of the lanes of p, q, u, v.
  static void add_sums(Reg p, Reg q, Reg u, Reg v, float* to) {
    const __m512d pq = _mm512_castps_pd(add(_mm512_unpacklo_ps(p, q), _mm512_unpackhi_ps(p, q)));
    const __m512d uv = _mm512_castps_pd(add(_mm512_unpacklo_ps(u, v), _mm512_unpackhi_ps(u, v)));
    const Reg all = add(_mm512_castpd_ps(_mm512_unpacklo_pd(pq, uv)),
                        _mm512_castpd_ps(_mm512_unpackhi_pd(pq, uv)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
  }
};

}  // namespace cmlora::cpu
