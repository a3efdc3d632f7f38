// Compiled when CMLORA_CUDA is OFF.
#include <stdexcept>

#include "ops/attention_tap.h"
#include "ops/cache_refresh.h"
#include "ops/combine.h"
#include "ops/contrastive_loss.h"
#include "ops/cuda_status.h"
#include "ops/decide.h"
#include "ops/lora_delta.h"
#include "ops/lora_fold.h"
#include "ops/radial_amplitude.h"

namespace cmlora::cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error(missing()); }

}  // namespace

std::string missing() { return "cmlora_fast was built without its CUDA kernels (CMLORA_CUDA=OFF)"; }

void attention_tap(const AttentionTap&, const Stream&) { refuse(); }
void attention_tap_backward(const AttentionTap&, const Stream&) { refuse(); }
bool attention_tap_fits(int64_t) { refuse(); }
void cache_refresh(const CacheRefresh&, const Stream&) { refuse(); }
void combine(const Combine&, const Stream&) { refuse(); }
void contrastive_loss(const ContrastiveLoss&, const Stream&) { refuse(); }
bool contrastive_loss_fits(int64_t, int64_t) { refuse(); }
void decide(const Decide&, const Stream&) { refuse(); }
void lora_delta(const LoraDelta&, const Stream&) { refuse(); }
void lora_fold(const LoraFold&, const Stream&) { refuse(); }
void radial_amplitude(const RadialAmplitude&, float*, const Stream&) { refuse(); }
int64_t radial_scratch(int64_t, int64_t, int) { refuse(); }

}  // namespace cmlora::cuda
