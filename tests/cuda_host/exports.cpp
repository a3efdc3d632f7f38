// The ops of csrc/ops for ctypes: each returns an empty text, or what was thrown.
#include <exception>
#include <string>

#include "ops/attention_tap.h"
#include "ops/cache_refresh.h"
#include "ops/combine.h"
#include "ops/contrastive_loss.h"
#include "ops/decide.h"
#include "ops/lora_delta.h"
#include "ops/lora_fold.h"
#include "ops/radial_amplitude.h"

namespace {

template <typename Body>
const char* guarded(Body&& body) {
  static std::string message;
  message.clear();
  try {
    body();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

const cmlora::Stream kStream{0, 0};

}  // namespace

extern "C" {

const char* lora_delta(const cmlora::LoraDelta* op) {
  return guarded([&] { cmlora::cuda::lora_delta(*op, kStream); });
}

const char* lora_fold(const cmlora::LoraFold* op) {
  return guarded([&] { cmlora::cuda::lora_fold(*op, kStream); });
}

const char* attention_tap(const cmlora::AttentionTap* op) {
  return guarded([&] { cmlora::cuda::attention_tap(*op, kStream); });
}

const char* attention_tap_backward(const cmlora::AttentionTap* op) {
  return guarded([&] { cmlora::cuda::attention_tap_backward(*op, kStream); });
}

const char* cache_refresh(const cmlora::CacheRefresh* op) {
  return guarded([&] { cmlora::cuda::cache_refresh(*op, kStream); });
}

const char* combine(const cmlora::Combine* op) {
  return guarded([&] { cmlora::cuda::combine(*op, kStream); });
}

const char* contrastive_loss(const cmlora::ContrastiveLoss* op) {
  return guarded([&] { cmlora::cuda::contrastive_loss(*op, kStream); });
}

const char* decide(const cmlora::Decide* op) {
  return guarded([&] { cmlora::cuda::decide(*op, kStream); });
}

const char* radial_amplitude(const cmlora::RadialAmplitude* op, float* scratch) {
  return guarded([&] { cmlora::cuda::radial_amplitude(*op, scratch, kStream); });
}

int64_t radial_scratch(int64_t H, int64_t W) { return cmlora::cuda::radial_scratch(H, W, 0); }
}
