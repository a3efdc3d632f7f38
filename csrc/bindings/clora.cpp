#include "bindings/predictions.h"
#include "ops/contrastive_loss.h"
#include "ops/mask_fuse.h"

namespace nb = nanobind;

namespace cmlora {

// On the CPU both run their torch twins.
void bind_clora(nb::module_& m) {
  nb::module_ gpu = m.attr("cuda");
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
