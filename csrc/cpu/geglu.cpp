#include "ops/geglu.h"

#include "common/parallel.h"
#include "cpu/kernels.h"

namespace cmlora::cpu {

namespace {

constexpr int64_t kOperations = 40;  // of one vector

}  // namespace

void geglu(const Geglu& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t unit = kOperations * op.N / kernels.width;
  const int64_t bytes = op.N * element_size(op.dtype);
  parallel_for(op.tokens, grain_for(unit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* x = static_cast<const char*>(op.x) + i * 2 * bytes;
      kernels.geglu[int(op.dtype)]({static_cast<char*>(op.out) + i * bytes, x, x + bytes, op.N});
    }
  });
}

void geglu_backward(const GegluBackward& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t unit = kOperations * op.N / kernels.width;
  const int64_t bytes = op.N * element_size(op.dtype);
  parallel_for(op.tokens, grain_for(unit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* x = static_cast<const char*>(op.x) + i * 2 * bytes;
      char* dx = static_cast<char*>(op.dx) + i * 2 * bytes;
      const char* dout = static_cast<const char*>(op.dout) + i * bytes;
      kernels.geglu_backward[int(op.dtype)]({dx, dx + bytes, dout, x, x + bytes, op.N});
    }
  });
}

}  // namespace cmlora::cpu
