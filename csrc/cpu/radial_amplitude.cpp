#include "ops/radial_amplitude.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/spectrum_plan.h"

namespace cmlora::cpu {

void radial_amplitude(const RadialAmplitude& op, int isa) {
  if (op.B == 0) return;
  const Kernels& kernels = kernels_of(isa);
  const auto plan = spectrum_plan(op.H, op.W);
  const int64_t unit = op.H * op.W * (op.C + 16);
  parallel_for(op.B, grain_for(unit), [&](int64_t begin, int64_t end) {
    thread_local Scratch<double> memory;
    for (int64_t image = begin; image < end; ++image) {
      SpectrumImage part{};
      part.latents =
          static_cast<const char*>(op.latents) + image * op.b_stride * element_size(op.dtype);
      part.C = op.C;
      part.c_stride = op.c_stride;
      part.h_stride = op.h_stride;
      part.first_bin = op.first_bin;
      part.log = op.log;
      part.mean = op.mean + image;
      part.profile = op.profile + image * plan->bins;
      part.plan = plan.get();
      part.scratch = memory.get(plan->scratch_size);
      kernels.radial_amplitude[int(op.dtype)](part);
    }
    memory.trim();
  });
}

}  // namespace cmlora::cpu
