#pragma once

#include <cstdint>

#include "ops/stream.h"

namespace cmlora {

// early[b] = (reading[b] >= threshold) && (early[b] || !latch), and what the step does in that
// stage: each sample's shares, and the rows whose deep part runs. Sample n is of image n % B, row
// j * batch + n is sample n with subset j; an image's rows of one subset stand together.
struct Decide {
  int32_t* early;         // [B]
  float* weights;         // [J, batch]
  int32_t* deep;          // [3, B * F * batch / B]: row; subset; subset of each run of equal ones
  const float* reading;   // [B]; null: the stages stay
  const float* shares;    // [2, J], late and early
  const int32_t* places;  // [2, F], subsets
  int64_t B;
  int64_t J;
  int64_t F;
  int64_t batch;
  double threshold;
  bool latch;
  bool nan_early;  // the stage where the reading is NaN
};

namespace cuda {
void decide(const Decide& op, const Stream& stream);
}

}  // namespace cmlora
