#include "ops/combine.h"

#include <vector>

#include "common/planes.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace cmlora::cpu {

void combine(const Combine& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t *to_stride = op.out_strides, *from_stride = op.noise_strides;
  const Runs runs = find_runs(op.C, op.H, op.W, to_stride + 2, from_stride + 3);
  const int64_t parts = op.guided ? 1 : op.G;  // of the output
  const int64_t sources = op.guided ? 2 * op.J : op.J;
  const int64_t per_image = runs.outer * runs.inner;
  const int64_t size = element_size(op.dtype);
  const int64_t unit = runs.length * sources / kernels.width;
  parallel_for(parts * op.B * per_image, grain_for(unit), [&](int64_t begin, int64_t end) {
    std::vector<const void*> noise(sources);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / per_image / op.B, b = i / per_image % op.B;
      const int64_t c = i % per_image / runs.inner, h = i % runs.inner;
      const int64_t from = b * from_stride[2] + c * from_stride[3] + h * from_stride[4];
      for (int64_t s = 0; s < sources; ++s) {
        const int64_t part = op.guided ? s / op.J : g, j = s % op.J;
        noise[s] = static_cast<const char*>(op.noise) +
                   (part * from_stride[0] + j * from_stride[1] + from) * size;
      }
      const int64_t to = g * to_stride[0] + b * to_stride[1] + c * to_stride[2] + h * to_stride[3];
      kernels.combine[int(op.dtype)]({static_cast<char*>(op.out) + to * size, noise.data(),
                                      op.weights + b, op.B, op.J, runs.length, op.guided,
                                      op.guidance_scale});
    }
  });
}

}  // namespace cmlora::cpu
