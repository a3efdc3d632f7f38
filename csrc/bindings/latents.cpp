#include <nanobind/stl/array.h>

#include <stdexcept>
#include <string>

#include "bindings/bind.h"
#include "ops/cache_refresh.h"
#include "ops/combine.h"
#include "ops/radial_amplitude.h"

namespace nb = nanobind;

namespace cmlora {
namespace {

template <size_t n>
using Sizes = std::array<int64_t, n>;

void bind_radial_amplitude(nb::module_& m) {
  m.def("radial_amplitude", [](uintptr_t mean, uintptr_t profile, uintptr_t latents,
                               const Sizes<4>& shape, const Sizes<4>& strides, int64_t first_bin,
                               bool log, int dtype, int isa) {
    const RadialAmplitude op{at<float>(mean), at<float>(profile), at<void>(latents), shape[0],
                             shape[1],        shape[2],           shape[3],          strides[0],
                             strides[1],      strides[2],         first_bin,         log,
                             DType(dtype)};
    nb::gil_scoped_release release;
    cpu::radial_amplitude(op, isa);
  });
}

// Rows in range, none named twice: two writers of one row would race.
void check_rows(const int32_t* rows, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    const std::string name = "cache_refresh_: expected rows[" + std::to_string(i) + "] ";
    if (rows[i] < 0 || rows[i] >= limit) {
      throw std::invalid_argument(name + "in 0 .. " + std::to_string(limit - 1) + "; got " +
                                  std::to_string(rows[i]));
    }
    for (int64_t j = 0; j < i; ++j) {
      if (rows[j] == rows[i]) {
        throw std::invalid_argument(name + "to differ from the others; got " +
                                    std::to_string(rows[i]) + " twice");
      }
    }
  }
}

void bind_cache_refresh(nb::module_& m) {
  m.def("check_rows", [](uintptr_t rows, int64_t count, int64_t limit) {
    check_rows(at<int32_t>(rows), count, limit);
  });
  m.def("cache_refresh",
        [](uintptr_t cache, const Sizes<4>& shape, const Sizes<4>& strides, uintptr_t fresh,
           const Sizes<4>& fresh_strides, uintptr_t rows, int64_t R, int64_t element_size) {
          const CacheRefresh op{at<void>(cache),
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
          nb::gil_scoped_release release;
          cpu::cache_refresh(op);
        });
}

void bind_combine(nb::module_& m) {
  m.def("combine", [](uintptr_t out, const Sizes<4>& out_strides, uintptr_t noise,
                      const Sizes<6>& shape, const Sizes<6>& strides, uintptr_t weights,
                      bool guided, float guidance_scale, int dtype, int isa) {
    Combine op{};
    op.out = at<void>(out);
    op.noise = at<void>(noise);
    op.weights = at<float>(weights);
    op.G = shape[0], op.J = shape[1], op.B = shape[2];
    op.C = shape[3], op.H = shape[4], op.W = shape[5];
    for (int i = 0; i < 4; ++i) op.out_strides[i] = out_strides[i];
    for (int i = 0; i < 5; ++i) op.noise_strides[i] = strides[i];
    op.guided = guided;
    op.guidance_scale = guidance_scale;
    op.dtype = DType(dtype);
    nb::gil_scoped_release release;
    cpu::combine(op, isa);
  });
}

}  // namespace

void bind_latents(nb::module_& m) {
  bind_radial_amplitude(m);
  bind_cache_refresh(m);
  bind_combine(m);
}

}  // namespace cmlora
