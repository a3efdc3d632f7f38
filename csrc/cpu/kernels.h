#pragma once

#include "cpu/attention_backward_kernels.h"
#include "cpu/attention_kernels.h"
#include "cpu/combine_kernels.h"
#include "cpu/fold_kernels.h"
#include "cpu/geglu_kernels.h"
#include "cpu/group_norm_kernels.h"
#include "cpu/isa.h"
#include "cpu/lora_kernels.h"
#include "cpu/spectrum_kernels.h"

namespace cmlora::cpu {

// The kernels of one instruction set; arrays are indexed by DType.
struct Kernels {
  const char* name;
  int64_t width;
  int64_t tile;  // tokens that one register tile holds
  int64_t attention_queries;
  int64_t (*delta_scratch)(int64_t padded_rank);
  int64_t (*attention_scratch)(int64_t D);
  int64_t (*attention_backward_scratch)(int64_t queries, int64_t D);
  int64_t (*shrink_panel)(int64_t K);
  void (*pack_shrink[kDTypes])(const Matrix& a, int64_t ranks, int64_t K, float* out);
  void (*pack_expand[kDTypes])(const Matrix& m, int64_t rank, int64_t columns, float* out);
  void (*lora_delta[kDTypes])(const DeltaBlock& block);
  void (*lora_fold[kDTypes])(const FoldBlock& block);
  void (*attention[kDTypes])(const AttentionBlock& block);
  void (*attention_backward[kDTypes])(const AttentionBackwardBlock& block);
  void (*geglu[kDTypes])(const GegluRun& run);
  void (*geglu_backward[kDTypes])(const GegluBackwardRun& run);
  void (*moments[kDTypes])(const MomentsRun& run);
  void (*normalize[kDTypes])(const NormalizeRun& run);
  void (*combine[kDTypes])(const CombineRun& run);
  void (*radial_amplitude[kDTypes])(const SpectrumImage& image);
};

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
