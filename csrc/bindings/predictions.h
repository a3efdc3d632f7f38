#pragma once

#include <nanobind/stl/array.h>

#include <array>

#include "bindings/bind.h"
#include "common/dtype.h"

namespace cmlora {

template <size_t n>
using Sizes = std::array<int64_t, n>;

// An op that sums predictions [G, J, B, C, H, W] by float32 factors, a member of its own name.
template <typename Op, const float* Op::* factors>
Op sum_of_predictions(uintptr_t out, const Sizes<4>& out_strides, uintptr_t noise,
                      const Sizes<6>& shape, const Sizes<6>& strides, uintptr_t given, bool guided,
                      float guidance_scale, int dtype) {
  Op op{};
  op.out = at<void>(out);
  op.noise = at<void>(noise);
  op.*factors = at<float>(given);
  op.G = shape[0], op.J = shape[1], op.B = shape[2];
  op.C = shape[3], op.H = shape[4], op.W = shape[5];
  for (int i = 0; i < 4; ++i) op.out_strides[i] = out_strides[i];
  for (int i = 0; i < 5; ++i) op.noise_strides[i] = strides[i];
  op.guided = guided;
  op.guidance_scale = guidance_scale;
  op.dtype = DType(dtype);
  return op;
}

}  // namespace cmlora
