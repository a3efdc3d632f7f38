#include "bindings/bind.h"
#include "ops/attention.h"
#include "ops/geglu.h"
#include "ops/group_norm.h"
#include "ops/im2col.h"

namespace nb = nanobind;

namespace cmlora {
namespace {

using Strides = Sizes<2>;  // of rows and tokens

// sizes: rows, queries, keys, heads, D.
Attention attention_op(uintptr_t out, uintptr_t lse, uintptr_t q, const Strides& q_strides,
                       uintptr_t k, const Strides& k_strides, uintptr_t v, const Strides& v_strides,
                       const Sizes<5>& sizes, float scale, int dtype) {
  const auto input = [](uintptr_t address, const Strides& strides) {
    return AttentionInput{at<void>(address), strides[0], strides[1]};
  };
  return {at<void>(out),
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
}

AttentionBackward attention_backward_op(uintptr_t dq, uintptr_t dk, uintptr_t dv, uintptr_t dout,
                                        uintptr_t out, uintptr_t lse, uintptr_t q,
                                        const Strides& q_strides, uintptr_t k,
                                        const Strides& k_strides, uintptr_t v,
                                        const Strides& v_strides, const Sizes<5>& sizes,
                                        float scale, int dtype) {
  return {at<void>(dq), at<void>(dk), at<void>(dv), at<void>(dout),
          attention_op(out, lse, q, q_strides, k, k_strides, v, v_strides, sizes, scale, dtype)};
}

Geglu geglu_op(uintptr_t out, uintptr_t x, int64_t tokens, int64_t N, int dtype) {
  return {at<void>(out), at<void>(x), tokens, N, DType(dtype)};
}

GegluBackward geglu_backward_op(uintptr_t dx, uintptr_t dout, uintptr_t x, int64_t tokens,
                                int64_t N, int dtype) {
  return {at<void>(dx), at<void>(dout), at<void>(x), tokens, N, DType(dtype)};
}

// sizes: rows, tokens, C, groups.
GroupNorm group_norm_op(uintptr_t out, uintptr_t x, uintptr_t shift, uintptr_t weight,
                        uintptr_t bias, const Sizes<4>& sizes, const Strides& strides, float eps,
                        bool silu, int dtype) {
  return {
      at<void>(out), at<void>(x), at<float>(shift), at<float>(weight), at<float>(bias), sizes[0],
      sizes[1],      sizes[2],    sizes[3],         strides[0],        strides[1],      eps,
      silu,          DType(dtype)};
}

using Pair = Sizes<2>;

void bind_im2col(nb::module_& m, const char* name, void (*run)(const Im2col&)) {
  m.def(name, [run](uintptr_t image, uintptr_t columns, const Sizes<4>& shape, const Pair& kernel,
                    const Pair& stride, const Pair& pad, const Pair& places) {
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
  bind_cpu<attention_op, cpu::attention>(m, "attention");
  bind_cpu<attention_backward_op, cpu::attention_backward>(m, "attention_backward");
  bind_cpu<geglu_op, cpu::geglu>(m, "geglu");
  bind_cpu<geglu_backward_op, cpu::geglu_backward>(m, "geglu_backward");
  bind_cpu<group_norm_op, cpu::group_norm>(m, "group_norm");
  bind_im2col(m, "im2col", cpu::im2col);
  bind_im2col(m, "col2im", cpu::col2im);
}

}  // namespace cmlora
