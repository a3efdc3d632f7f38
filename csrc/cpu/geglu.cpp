#include "ops/geglu.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace cmlora::cpu {

namespace {

constexpr int64_t kOperations = 40;  // of one vector

// body(i) for every token.
template <typename Body>
void for_tokens(int64_t tokens, int64_t N, const Kernels& kernels, const Body& body) {
  parallel_for(tokens, grain_for(kOperations * N / kernels.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace

void geglu(const Geglu& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t bytes = op.N * element_size(op.dtype);
  for_tokens(op.tokens, op.N, kernels, [&](int64_t i) {
    const char* x = static_cast<const char*>(op.x) + i * 2 * bytes;
    char* out = static_cast<char*>(op.out) + i * op.out_stride * element_size(op.dtype);
    kernels.geglu[int(op.dtype)]({out, x, x + bytes, op.N});
  });
}

void geglu_backward(const GegluBackward& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t bytes = op.N * element_size(op.dtype);
  for_tokens(op.tokens, op.N, kernels, [&](int64_t i) {
    const char* x = static_cast<const char*>(op.x) + i * 2 * bytes;
    char* dx = static_cast<char*>(op.dx) + i * 2 * bytes;
    const char* dout = static_cast<const char*>(op.dout) + i * bytes;
    kernels.geglu_backward[int(op.dtype)]({dx, dx + bytes, dout, x, x + bytes, op.N});
  });
}

}  // namespace cmlora::cpu
