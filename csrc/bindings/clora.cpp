#include "bindings/bind.h"
#include "ops/attention_tap.h"
#include "ops/contrastive_loss.h"

namespace nb = nanobind;

namespace cmlora {
namespace {

AttentionTap attention_tap_op(uintptr_t maps, uintptr_t grad, uintptr_t slope, uintptr_t q,
                              uintptr_t k, uintptr_t columns, const Sizes<6>& sizes,
                              const Sizes<2>& q_strides, const Sizes<2>& k_strides, float scale,
                              int dtype) {
  return {at<float>(maps),
          at<float>(grad),
          at<void>(slope),
          at<void>(q),
          at<void>(k),
          at<int32_t>(columns),
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          sizes[5],
          {q_strides[0], q_strides[1]},
          {k_strides[0], k_strides[1]},
          scale,
          DType(dtype)};
}

ContrastiveLoss contrastive_loss_op(uintptr_t loss, uintptr_t gradient, uintptr_t maps,
                                    uintptr_t index, uintptr_t labels, const Sizes<4>& sizes,
                                    float temperature) {
  return {at<float>(loss),
          at<float>(gradient),
          at<float>(maps),
          at<int32_t>(index),
          at<int32_t>(labels),
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          temperature};
}

}  // namespace

// On the CPU all run their torch twins.
void bind_clora(nb::module_& m) {
  bind_cuda<attention_tap_op, cuda::attention_tap>(m, "attention_tap");
  bind_cuda<attention_tap_op, cuda::attention_tap_backward>(m, "attention_tap_backward");
  bind_cuda<cuda::attention_tap_fits>(m, "attention_tap_fits");
  bind_cuda<contrastive_loss_op, cuda::contrastive_loss>(m, "contrastive_loss");
  bind_cuda<cuda::contrastive_loss_fits>(m, "contrastive_loss_fits");
}

}  // namespace cmlora
