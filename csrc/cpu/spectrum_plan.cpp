#include "cpu/spectrum_plan.h"

#include <algorithm>
#include <cmath>
#include <list>
#include <mutex>

#include "common/radius.h"

namespace cmlora::cpu {
namespace {

constexpr size_t kKept = 16;

void fill_roots(int64_t n, std::vector<double>* re, std::vector<double>* im) {
  const double turn = -2.0 * std::acos(-1.0);
  re->resize(n);
  im->resize(n);
  for (int64_t j = 0; j < n; ++j) {
    (*re)[j] = std::cos(turn * double(j) / double(n));
    (*im)[j] = std::sin(turn * double(j) / double(n));
  }
}

}  // namespace

SpectrumPlan::SpectrumPlan(int64_t H, int64_t W)
    : H(H), W(W), half(H / 2 + 1), pairs((W + 1) / 2), bins(radius(H / 2, W / 2) + 1) {
  fill_roots(H, &h_cos, &h_sin);
  fill_roots(W, &w_cos, &w_sin);
  bin.resize(W * half);
  count.assign(bins, 0.0);
  for (int64_t x = 0; x < W; ++x) {
    const int64_t kx = 2 * x < W ? x : x - W;  // the place after fftshift, less W // 2
    for (int64_t ky = 0; ky < half; ++ky) {
      const int64_t r = radius(ky, kx);
      bin[x * half + ky] = int32_t(r);
      count[r] += ky == 0 || 2 * ky == H ? 1.0 : 2.0;
    }
  }
  // Two complex arrays of the larger stage, the amplitudes' sums after them.
  scratch_size = 4 * std::max(H * pairs, W * half) + bins;
}

std::shared_ptr<const SpectrumPlan> spectrum_plan(int64_t H, int64_t W) {
  static std::mutex mutex;
  static std::list<std::shared_ptr<const SpectrumPlan>> plans;  // latest use first
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = std::find_if(plans.begin(), plans.end(),
                                  [&](const auto& plan) { return plan->H == H && plan->W == W; });
  if (found != plans.end()) {
    plans.splice(plans.begin(), plans, found);
  } else {
    plans.push_front(std::make_shared<const SpectrumPlan>(H, W));
    if (plans.size() > kKept) plans.pop_back();
  }
  return plans.front();
}

}  // namespace cmlora::cpu
