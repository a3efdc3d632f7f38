#pragma once

#include "cpu/attention_backward_kernels.h"
#include "cpu/attention_kernels.h"
#include "cpu/combine_kernels.h"
#include "cpu/fold_kernels.h"
#include "cpu/geglu_kernels.h"
#include "cpu/group_norm_kernels.h"
#include "cpu/lora_kernels.h"
#include "cpu/spectrum_kernels.h"

namespace cmlora::cpu {

// Every kernel instantiated for one instruction set.
template <typename Simd>
constexpr Kernels kernel_table() {
  using F = float;
  using B = BFloat16;
  using H = Float16;
  return {
      Simd::kName,
      Simd::kWidth,
      Simd::kTile,
      attention_queries<Simd>(),
      delta_scratch<Simd>,
      attention_scratch<Simd>,
      attention_backward_scratch<Simd>,
      shrink_panel<Simd>,
      {pack_shrink<Simd, F>, pack_shrink<Simd, B>, pack_shrink<Simd, H>},
      {pack_expand<Simd, F>, pack_expand<Simd, B>, pack_expand<Simd, H>},
      {lora_delta<Simd, F>, lora_delta<Simd, B>, lora_delta<Simd, H>},
      {lora_fold<Simd, F>, lora_fold<Simd, B>, lora_fold<Simd, H>},
      {attention<Simd, F>, attention<Simd, B>, attention<Simd, H>},
      {attention_backward<Simd, F>, attention_backward<Simd, B>, attention_backward<Simd, H>},
      {geglu<Simd, F>, geglu<Simd, B>, geglu<Simd, H>},
      {geglu_backward<Simd, F>, geglu_backward<Simd, B>, geglu_backward<Simd, H>},
      {moments<Simd, F>, moments<Simd, B>, moments<Simd, H>},
      {normalize<Simd, F>, normalize<Simd, B>, normalize<Simd, H>},
      {combine<Simd, F>, combine<Simd, B>, combine<Simd, H>},
      {radial_amplitude<Simd, F>, radial_amplitude<Simd, B>, radial_amplitude<Simd, H>},
  };
}

}  // namespace cmlora::cpu
