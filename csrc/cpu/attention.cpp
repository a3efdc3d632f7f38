#include "ops/attention.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace cmlora::cpu {

namespace {

const char* at(const AttentionInput& input, int64_t row, int64_t token, int64_t first,
               int64_t size) {
  const char* data = static_cast<const char*>(input.data);
  return data + (row * input.row_stride + token * input.token_stride + first) * size;
}

}  // namespace

void attention(const Attention& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const int64_t blocks = (op.queries + kernels.attention_queries - 1) / kernels.attention_queries;
  const int64_t size = element_size(op.dtype);
  const int64_t width = op.heads * op.D;
  const int64_t unit = 2 * op.D * op.keys * kernels.attention_queries / kernels.width;
  const float scale = op.scale * 1.44269504f;  // the kernel's exponentials have base 2
  parallel_for(op.rows * op.heads * blocks, grain_for(unit), [&](int64_t begin, int64_t end) {
    static thread_local Scratch<float> scratch;
    float* memory = scratch.get(kernels.attention_scratch(op.D));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks / op.heads, head = i / blocks % op.heads;
      const int64_t first = i % blocks * kernels.attention_queries;
      const int64_t left = op.queries - first;
      const int64_t queries = left < kernels.attention_queries ? left : kernels.attention_queries;
      char* out =
          static_cast<char*>(op.out) + ((row * op.queries + first) * width + head * op.D) * size;
      float* lse = op.lse == nullptr ? nullptr : op.lse + i / blocks * op.queries + first;
      kernels.attention[int(op.dtype)](
          {at(op.q, row, first, head * op.D, size), at(op.k, row, 0, head * op.D, size),
           at(op.v, row, 0, head * op.D, size), out, lse, op.q.token_stride, op.k.token_stride,
           op.v.token_stride, width, queries, op.keys, op.D, scale, memory});
    }
    scratch.trim();
  });
}

void attention_backward(const AttentionBackward& op, int isa) {
  const Kernels& kernels = kernels_of(isa);
  const Attention& forward = op.forward;
  const int64_t size = element_size(forward.dtype), D = forward.D, width = forward.heads * D;
  const int64_t unit = 5 * D * forward.keys * forward.queries / kernels.width;
  parallel_for(forward.rows * forward.heads, grain_for(unit), [&](int64_t begin, int64_t end) {
    static thread_local Scratch<float> scratch;
    float* memory = scratch.get(kernels.attention_backward_scratch(forward.queries, D));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / forward.heads, first = i % forward.heads * D;
      const int64_t queries = (row * forward.queries * width + first) * size;
      const int64_t keys = (row * forward.keys * width + first) * size;
      const auto from = [](const void* data, int64_t offset) {
        return static_cast<const char*>(data) + offset;
      };
      const auto to = [](void* data, int64_t offset) {
        return data == nullptr ? nullptr : static_cast<char*>(data) + offset;
      };
      kernels.attention_backward[int(forward.dtype)](
          {to(op.dq, queries), to(op.dk, keys), to(op.dv, keys), from(op.dout, queries),
           from(forward.out, queries), at(forward.q, row, 0, first, size),
           at(forward.k, row, 0, first, size), at(forward.v, row, 0, first, size),
           forward.lse + i * forward.queries, width, forward.q.token_stride, forward.k.token_stride,
           forward.v.token_stride, forward.queries, forward.keys, D, forward.scale, memory});
    }
    scratch.trim();
  });
}

}  // namespace cmlora::cpu
