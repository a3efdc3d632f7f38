#include "ops/group_norm.h"

#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace cmlora::cpu {
namespace {

// Stretches of a row's tokens, each with the mean and squares of every channel; then the factors
// that bring a row's channels to what leaves the norm.
struct Plan {
  const GroupNorm& op;
  int64_t stretches = (op.tokens + kMomentTokens - 1) / kMomentTokens;
  float* memory = nullptr;

  int64_t size() const { return 2 * op.rows * op.C * (stretches + 1); }
  float* moments(int64_t row, int64_t stretch) const {
    return memory + 2 * op.C * (row * stretches + stretch);
  }
  float* factors(int64_t row) const { return memory + 2 * op.C * (op.rows * stretches + row); }
  int64_t tokens(int64_t stretch) const {
    return std::min(kMomentTokens, op.tokens - stretch * kMomentTokens);
  }
};

// Mean and variance of channels first .. first + count, shifted: those of the stretches, joined.
void join(const Plan& plan, int64_t row, int64_t first, int64_t count, double* mean, double* var) {
  const GroupNorm& op = plan.op;
  const float* shift = op.shift ? static_cast<const float*>(op.shift) + row * op.C : nullptr;
  double sum = 0, squares = 0;
  const auto each = [&](auto&& add) {
    for (int64_t s = 0; s < plan.stretches; ++s) {
      const float* found = plan.moments(row, s);
      for (int64_t c = first; c < first + count; ++c) {
        add(double(plan.tokens(s)), found[c] + double(shift ? shift[c] : 0), found[op.C + c]);
      }
    }
  };
  each([&](double tokens, double middle, double) { sum += tokens * middle; });
  const double elements = double(op.tokens) * double(count);
  *mean = sum / elements;
  each([&](double tokens, double middle, double around) {
    squares += around + tokens * (middle - *mean) * (middle - *mean);
  });
  *var = squares / elements;
}

void find_factors(const Plan& plan, int64_t row) {
  const GroupNorm& op = plan.op;
  const int64_t count = op.C / op.groups;
  const auto* weight = static_cast<const float*>(op.weight);
  const auto* bias = static_cast<const float*>(op.bias);
  float* scale = plan.factors(row);
  float* offset = scale + op.C;
  for (int64_t first = 0; first < op.C; first += count) {
    double mean, var;
    join(plan, row, first, count, &mean, &var);
    const double inverse = 1 / std::sqrt(var + double(op.eps));
    for (int64_t c = first; c < first + count; ++c) {
      const double factor = weight[c] * inverse;
      const double shift = op.shift ? static_cast<const float*>(op.shift)[row * op.C + c] : 0;
      scale[c] = float(factor);
      offset[c] = float(bias[c] + (shift - mean) * factor);
    }
  }
}

}  // namespace

void group_norm(const GroupNorm& op, int isa) {
  if (op.rows == 0 || op.tokens == 0 || op.C == 0) return;
  const Kernels& kernels = kernels_of(isa);
  static thread_local Scratch<float> scratch;
  Plan plan{op};
  plan.memory = scratch.get(plan.size());
  const int64_t size = element_size(op.dtype), units = op.rows * plan.stretches;
  const int64_t vectors = kMomentTokens * op.C / kernels.width;  // of a stretch
  const auto x_at = [&](int64_t row, int64_t s) {
    const int64_t at = row * op.row_stride + s * kMomentTokens * op.token_stride;
    return static_cast<const char*>(op.x) + at * size;
  };
  parallel_for(units, grain_for(4 * vectors), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / plan.stretches, s = i % plan.stretches;
      float* found = plan.moments(row, s);
      kernels.moments[int(op.dtype)](
          {x_at(row, s), op.token_stride, plan.tokens(s), op.C, found, found + op.C});
    }
  });
  parallel_for(op.rows, grain_for(4 * plan.stretches * op.C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) find_factors(plan, row);
  });
  parallel_for(units, grain_for(30 * vectors), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / plan.stretches, s = i % plan.stretches;
      const int64_t first = row * op.tokens + s * kMomentTokens;
      const float* scale = plan.factors(row);
      kernels.normalize[int(op.dtype)]({static_cast<char*>(op.out) + first * op.C * size,
                                        x_at(row, s), op.token_stride, plan.tokens(s), op.C, scale,
                                        scale + op.C, op.silu});
    }
  });
  scratch.trim();
}

}  // namespace cmlora::cpu
