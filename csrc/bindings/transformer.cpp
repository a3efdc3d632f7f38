#include "bindings/bind.h"
#include "ops/add_shift.h"
#include "ops/attention.h"
#include "ops/geglu.h"
#include "ops/group_norm.h"
#include "ops/im2col.h"
#include "ops/layer_norm.h"

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

Geglu geglu_op(uintptr_t out, int64_t out_stride, uintptr_t x, int64_t tokens, int64_t N,
               int dtype) {
  return {at<void>(out), at<void>(x), tokens, N, out_stride, DType(dtype)};
}

GegluBackward geglu_backward_op(uintptr_t dx, uintptr_t dout, uintptr_t x, int64_t tokens,
                                int64_t N, int dtype) {
  return {at<void>(dx), at<void>(dout), at<void>(x), tokens, N, DType(dtype)};
}

using Kinds = std::array<int, 3>;  // of x, of weight and bias, of the shift

// sizes: rows, tokens, C, groups, chunks; strides: of x, of out's tokens, of the shift's rows.
GroupNorm group_norm_op(uintptr_t out, uintptr_t x, uintptr_t shift, uintptr_t weight,
                        uintptr_t bias, uintptr_t moments, const Sizes<5>& sizes,
                        const Sizes<4>& strides, float eps, bool silu, const Kinds& dtypes) {
  return {at<void>(out),  at<void>(x),        at<void>(shift),  at<void>(weight),
          at<void>(bias), at<float>(moments), sizes[0],         sizes[1],
          sizes[2],       sizes[3],           strides[0],       strides[1],
          strides[2],     strides[3],         sizes[4],         eps,
          silu,           DType(dtypes[0]),   DType(dtypes[1]), DType(dtypes[2])};
}

// addresses: out, total, x, residual, weight, bias; sizes: tokens, C, stride of out's tokens.
LayerNorm layer_norm_op(const std::array<uintptr_t, 6>& addresses, const Sizes<3>& sizes, float eps,
                        int dtype, int affine_dtype) {
  const auto [out, total, x, residual, weight, bias] = addresses;
  return {at<void>(out),  at<void>(total),    at<void>(x), at<void>(residual), at<void>(weight),
          at<void>(bias), sizes[0],           sizes[1],    sizes[2],           eps,
          DType(dtype),   DType(affine_dtype)};
}

// addresses: out, x, y, shift; sizes: tokens, C, stride of out's tokens.
AddShift add_shift_op(const std::array<uintptr_t, 4>& addresses, const Sizes<3>& sizes, int dtype,
                      int shift_dtype) {
  const auto [out, x, y, shift] = addresses;
  return {at<void>(out), at<void>(x), at<void>(y),  at<void>(shift),   sizes[0],
          sizes[1],      sizes[2],    DType(dtype), DType(shift_dtype)};
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
  bind_op<geglu_op, cpu::geglu, cuda::geglu>(m, "geglu");
  bind_cpu<geglu_backward_op, cpu::geglu_backward>(m, "geglu_backward");
  bind_op<group_norm_op, cpu::group_norm, cuda::group_norm>(m, "group_norm");
  bind_cuda<layer_norm_op, cuda::layer_norm>(m, "layer_norm");
  bind_cuda<add_shift_op, cuda::add_shift>(m, "add_shift");
  bind_im2col(m, "im2col", cpu::im2col);
  bind_im2col(m, "col2im", cpu::col2im);
}

}  // namespace cmlora
