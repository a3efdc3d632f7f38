#include "bindings/predictions.h"
#include "ops/attention_tap.h"
#include "ops/contrastive_loss.h"
#include "ops/mask_fuse.h"

namespace nb = nanobind;

namespace cmlora {

namespace {

AttentionTap attention_tap(uintptr_t maps, uintptr_t grad, uintptr_t slope, uintptr_t q,
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

template <void (*kernel)(const AttentionTap&, const Stream&), typename... Args>
void bind_tap(nb::module_& gpu, const char* name, AttentionTap (*make)(Args...)) {
  gpu.def(name, [make](Args... args, int device, uintptr_t stream) {
    kernel(make(args...), {device, stream});
  });
}

}  // namespace

// On the CPU all run their torch twins.
void bind_clora(nb::module_& m) {
  nb::module_ gpu = m.attr("cuda");
  bind_tap<cuda::attention_tap>(gpu, "attention_tap", attention_tap);
  bind_tap<cuda::attention_tap_backward>(gpu, "attention_tap_backward", attention_tap);
  gpu.def("attention_tap_fits", cuda::attention_tap_fits);
  gpu.def("mask_fuse",
          [](uintptr_t out, const Sizes<4>& out_strides, uintptr_t noise, const Sizes<6>& shape,
             const Sizes<6>& strides, uintptr_t masks, bool guided, float guidance_scale, int dtype,
             int device, uintptr_t stream) {
            cuda::mask_fuse(
                sum_of_predictions<MaskFuse, &MaskFuse::masks>(
                    out, out_strides, noise, shape, strides, masks, guided, guidance_scale, dtype),
                {device, stream});
          });
  gpu.def("contrastive_loss",
          [](uintptr_t loss, uintptr_t gradient, uintptr_t maps, uintptr_t index, uintptr_t labels,
             const Sizes<4>& sizes, float temperature, int device, uintptr_t stream) {
            const ContrastiveLoss op{at<float>(loss),
                                     at<float>(gradient),
                                     at<float>(maps),
                                     at<int32_t>(index),
                                     at<int32_t>(labels),
                                     sizes[0],
                                     sizes[1],
                                     sizes[2],
                                     sizes[3],
                                     temperature};
            cuda::contrastive_loss(op, {device, stream});
          });
  gpu.def("contrastive_loss_fits", cuda::contrastive_loss_fits);
}

}  // namespace cmlora
