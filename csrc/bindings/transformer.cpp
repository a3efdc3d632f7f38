#include <nanobind/stl/array.h>

#include "bindings/bind.h"
#include "ops/attention.h"
#include "ops/geglu.h"
#include "ops/group_norm.h"
#include "ops/im2col.h"

namespace nb = nanobind;

namespace cmlora {

namespace {

using Strides = std::array<int64_t, 2>;         // of rows and tokens
using AttentionSizes = std::array<int64_t, 5>;  // rows, queries, keys, heads, D

void bind_attention(nb::module_& m) {
  const auto attention = [](uintptr_t out, uintptr_t lse, uintptr_t q, const Strides& q_strides,
                            uintptr_t k, const Strides& k_strides, uintptr_t v,
                            const Strides& v_strides, const AttentionSizes& sizes, float scale,
                            int dtype) {
    const auto input = [](uintptr_t address, const Strides& strides) {
      return AttentionInput{at<void>(address), strides[0], strides[1]};
    };
    return Attention{at<void>(out),
                     at<float>(lse),
                     input(q, q_strides),
                     input(k, k_strides),
                     input(v, v_strides),
                     sizes[0],
                     sizes[1],
                     sizes[2],
                     sizes[3],
                     sizes[4],
                     scale,
                     DType(dtype)};
  };
  m.def("attention",
        [attention](uintptr_t out, uintptr_t lse, uintptr_t q, const Strides& q_strides,
                    uintptr_t k, const Strides& k_strides, uintptr_t v, const Strides& v_strides,
                    const AttentionSizes& sizes, float scale, int dtype, int isa) {
          const Attention op =
              attention(out, lse, q, q_strides, k, k_strides, v, v_strides, sizes, scale, dtype);
          nb::gil_scoped_release release;
          cpu::attention(op, isa);
        });
  m.def("attention_backward",
        [attention](uintptr_t dq, uintptr_t dk, uintptr_t dv, uintptr_t dout, uintptr_t out,
                    uintptr_t lse, uintptr_t q, const Strides& q_strides, uintptr_t k,
                    const Strides& k_strides, uintptr_t v, const Strides& v_strides,
                    const AttentionSizes& sizes, float scale, int dtype, int isa) {
          const AttentionBackward op{
              at<void>(dq), at<void>(dk), at<void>(dv), at<void>(dout),
              attention(out, lse, q, q_strides, k, k_strides, v, v_strides, sizes, scale, dtype)};
          nb::gil_scoped_release release;
          cpu::attention_backward(op, isa);
        });
}

void bind_geglu(nb::module_& m) {
  m.def("geglu", [](uintptr_t out, uintptr_t x, int64_t tokens, int64_t N, int dtype, int isa) {
    const Geglu op{at<void>(out), at<void>(x), tokens, N, DType(dtype)};
    nb::gil_scoped_release release;
    cpu::geglu(op, isa);
  });
  m.def("geglu_backward", [](uintptr_t dx, uintptr_t dout, uintptr_t x, int64_t tokens, int64_t N,
                             int dtype, int isa) {
    const GegluBackward op{at<void>(dx), at<void>(dout), at<void>(x), tokens, N, DType(dtype)};
    nb::gil_scoped_release release;
    cpu::geglu_backward(op, isa);
  });
}

void bind_group_norm(nb::module_& m) {
  using Sizes = std::array<int64_t, 4>;  // rows, tokens, C, groups
  m.def("group_norm", [](uintptr_t out, uintptr_t x, uintptr_t shift, uintptr_t weight,
                         uintptr_t bias, const Sizes& sizes, const Strides& strides, float eps,
                         bool silu, int dtype, int isa) {
    const GroupNorm op{
        at<void>(out), at<void>(x), at<float>(shift), at<float>(weight), at<float>(bias), sizes[0],
        sizes[1],      sizes[2],    sizes[3],         strides[0],        strides[1],      eps,
        silu,          DType(dtype)};
    nb::gil_scoped_release release;
    cpu::group_norm(op, isa);
  });
}

using Pair = std::array<int64_t, 2>;

void bind_im2col(nb::module_& m, const char* name, void (*run)(const Im2col&)) {
  m.def(name, [run](uintptr_t image, uintptr_t columns, const std::array<int64_t, 4>& shape,
                    const Pair& kernel, const Pair& stride, const Pair& pad, const Pair& places) {
    const auto [B, H, W, C] = shape;
    const Im2col op{at<float>(image), at<float>(columns), B,         H,         W,      C,
                    kernel[0],        kernel[1],          stride[0], stride[1], pad[0], pad[1],
                    places[0],        places[1]};
    nb::gil_scoped_release release;
    run(op);
  });
}

}  // namespace

void bind_transformer(nb::module_& m) {
  bind_attention(m);
  bind_geglu(m);
  bind_group_norm(m);
  bind_im2col(m, "im2col", cpu::im2col);
  bind_im2col(m, "col2im", cpu::col2im);
}

}  // namespace cmlora
