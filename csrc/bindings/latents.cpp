#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "bindings/bind.h"
#include "ops/cache_refresh.h"
#include "ops/combine.h"
#include "ops/decide.h"
#include "ops/radial_amplitude.h"

namespace nb = nanobind;

namespace cmlora {
namespace {

RadialAmplitude radial_amplitude_op(uintptr_t mean, uintptr_t profile, uintptr_t latents,
                                    const Sizes<4>& shape, const Sizes<4>& strides,
                                    uintptr_t scratch, int64_t first_bin, bool log, int dtype) {
  return {at<float>(mean),
          at<float>(profile),
          at<void>(latents),
          at<float>(scratch),
          shape[0],
          shape[1],
          shape[2],
          shape[3],
          strides[0],
          strides[1],
          strides[2],
          first_bin,
          log,
          DType(dtype)};
}

// In begin .. end - 1 and, where it writes what they name, each once: two writers would race.
void check_indices(const std::string& name, const int32_t* indices, int64_t count, int64_t begin,
                   int64_t end, bool distinct) {
  const auto refuse = [&](int64_t i, const std::string& rest) {
    throw std::invalid_argument(name + "[" + std::to_string(i) + "] " + rest);
  };
  for (int64_t i = 0; i < count; ++i) {
    const int32_t index = indices[i];
    if (index < begin || index >= end) {
      refuse(i, "in " + std::to_string(begin) + " .. " + std::to_string(end - 1) + "; got " +
                    std::to_string(index));
    }
    if (distinct && std::find(indices, indices + i, index) != indices + i) {
      refuse(i, "to differ from the others; got " + std::to_string(index) + " twice");
    }
  }
}

CacheRefresh cache_refresh_op(uintptr_t cache, const Sizes<4>& shape, const Sizes<4>& strides,
                              uintptr_t fresh, const Sizes<4>& fresh_strides, uintptr_t rows,
                              int64_t R, int64_t element_size) {
  return {at<void>(cache),
          at<void>(fresh),
          at<int32_t>(rows),
          shape[0],
          R,
          shape[1],
          shape[2],
          shape[3],
          {strides[0], strides[1], strides[2]},
          {fresh_strides[0], fresh_strides[1], fresh_strides[2]},
          element_size};
}

Combine combine_op(uintptr_t out, const Sizes<4>& out_strides, uintptr_t noise,
                   const Sizes<6>& shape, const Sizes<6>& strides, uintptr_t weights,
                   bool per_pixel, bool guided, float guidance_scale, int dtype) {
  const auto [G, J, B, C, H, W] = shape;
  return {at<void>(out),
          at<void>(noise),
          at<float>(weights),
          G,
          J,
          B,
          C,
          H,
          W,
          {out_strides[0], out_strides[1], out_strides[2], out_strides[3]},
          {strides[0], strides[1], strides[2], strides[3], strides[4]},
          per_pixel,
          guided,
          guidance_scale,
          DType(dtype)};
}

Decide decide_op(uintptr_t early, uintptr_t weights, uintptr_t deep, uintptr_t reading,
                 uintptr_t shares, uintptr_t places, const Sizes<4>& sizes, double threshold,
                 bool latch, bool nan_early) {
  return {at<int32_t>(early), at<float>(weights), at<int32_t>(deep),
          at<float>(reading), at<float>(shares),  at<int32_t>(places),
          sizes[0],           sizes[1],           sizes[2],
          sizes[3],           threshold,          latch,
          nan_early};
}

}  // namespace

void bind_latents(nb::module_& m) {
  bind_op<radial_amplitude_op, cpu::radial_amplitude, cuda::radial_amplitude>(m,
                                                                              "radial_amplitude");
  bind_cuda<cuda::radial_scratch>(m, "radial_scratch");
  bind_cuda<decide_op, cuda::decide>(m, "decide");  // the CPU's host decides by itself
  m.def("check_indices", [](const std::string& name, uintptr_t indices, int64_t count,
                            int64_t begin, int64_t end, bool distinct) {
    check_indices(name, at<int32_t>(indices), count, begin, end, distinct);
  });
  bind_op<cache_refresh_op, cpu::cache_refresh, cuda::cache_refresh>(m, "cache_refresh");
  bind_op<combine_op, cpu::combine, cuda::combine>(m, "combine");
}

}  // namespace cmlora
