#include <nanobind/stl/array.h>

#include "bindings/bind.h"
#include "ops/contrastive_loss.h"
#include "ops/mask_fuse.h"

namespace nb = nanobind;

namespace cmlora {
namespace {

template <size_t n>
using Sizes = std::array<int64_t, n>;

MaskFuse mask_fuse_op(uintptr_t out, const Sizes<4>& out_strides, uintptr_t noise,
                      const Sizes<6>& shape, const Sizes<6>& strides, uintptr_t masks, bool guided,
                      float guidance_scale, int dtype) {
  MaskFuse op{};
  op.out = at<void>(out);
  op.noise = at<void>(noise);
  op.masks = at<float>(masks);
  op.G = shape[0], op.J = shape[1], op.B = shape[2];
  op.C = shape[3], op.H = shape[4], op.W = shape[5];
  for (int i = 0; i < 4; ++i) op.out_strides[i] = out_strides[i];
  for (int i = 0; i < 5; ++i) op.noise_strides[i] = strides[i];
  op.guided = guided;
  op.guidance_scale = guidance_scale;
  op.dtype = DType(dtype);
  return op;
}

}  // namespace

// On the CPU both run their torch twins.
void bind_clora(nb::module_& m) {
  nb::module_ gpu = m.attr("cuda");
  gpu.def("mask_fuse", [](uintptr_t out, const Sizes<4>& out_strides, uintptr_t noise,
                          const Sizes<6>& shape, const Sizes<6>& strides, uintptr_t masks,
                          bool guided, float guidance_scale, int dtype, int device,
                          uintptr_t stream) {
    cuda::mask_fuse(
        mask_fuse_op(out, out_strides, noise, shape, strides, masks, guided, guidance_scale, dtype),
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
