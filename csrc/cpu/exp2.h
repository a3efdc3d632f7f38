#pragma once

namespace cmlora::cpu {

// 2^x for x <= 0; below 2^-126 it gives that. A polynomial of degree 6 on [-1/2, 1/2], fitted to a
// relative error of 2e-9.
template <typename Simd>
typename Simd::Reg exp2_of_negative(typename Simd::Reg x) {
  x = Simd::max(Simd::set(-126.0f), x);  // in this order a NaN stays
  const auto whole = Simd::round(x);
  const auto f = Simd::sub(x, whole);
  auto p = Simd::set(1.5370704932e-4f);
  p = Simd::fma(p, f, Simd::set(1.3399848247e-3f));
  p = Simd::fma(p, f, Simd::set(9.6183735877e-3f));
  p = Simd::fma(p, f, Simd::set(5.5503290147e-2f));
  p = Simd::fma(p, f, Simd::set(2.4022647738e-1f));
  p = Simd::fma(p, f, Simd::set(6.9314718246e-1f));
  p = Simd::fma(p, f, Simd::set(1.0f));
  return Simd::times_exp2(p, whole);
}

}  // namespace cmlora::cpu
