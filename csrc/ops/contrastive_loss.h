#pragma once

#include <cstdint>

#include "ops/stream.h"

namespace cmlora {

// NT-Xent over the cosines s_ij of K attention maps less their minima, and its gradient: for every
// ordered pair (i, j) of one label -log(e^(s_ij/τ) / (e^(s_ij/τ) + Σ_k e^(s_ik/τ))), k over the
// maps of other labels; the mean over pairs. Maps that are constant to rounding take no part.
struct ContrastiveLoss {
  float* loss;            // [B]
  float* gradient;        // [S, B, P], contiguous
  const float* maps;      // [S, B, P], contiguous
  const int32_t* index;   // [K], of S
  const int32_t* labels;  // [K]
  int64_t S;
  int64_t B;
  int64_t P;
  int64_t K;
  float temperature;
};

namespace cuda {
void contrastive_loss(const ContrastiveLoss& op, const Stream& stream);

// Whether what there is of each map and each pair fits a block; more than seventy maps do not.
bool contrastive_loss_fits(int64_t S, int64_t K);
}  // namespace cuda

}  // namespace cmlora
