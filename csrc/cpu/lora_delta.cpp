#include "ops/lora_delta.h"

#include "common/parallel.h"
#include "cpu/packed_rows.h"

namespace cmlora::cpu {

void lora_delta(const LoraDelta& op, int isa) {
  if (op.table.rows == 0 || op.tokens == 0 || op.N == 0) return;
  thread_local Scratch<float> packed_memory;
  const Kernels& kernels = kernels_of(isa);
  const Matrix b_turned{op.b.data, op.b.col_stride, op.b.row_stride};  // [ΣR, N]
  const PackedRows packed(kernels, op.dtype, op.table, op.a, op.K, b_turned, op.N, &packed_memory);
  const int64_t largest = packed.largest_padded_rank();
  if (largest == 0) return;

  const int64_t size = element_size(op.dtype);
  const int64_t block = 4 * kernels.tile;  // tokens
  const int64_t blocks = (op.tokens + block - 1) / block;
  const int64_t unit = block * (op.K + op.N) * largest / kernels.width;
  parallel_for(op.table.rows * blocks, grain_for(unit), [&](int64_t begin, int64_t end) {
    thread_local Scratch<float> tile_memory;
    float* scratch = tile_memory.get(kernels.delta_scratch(largest));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, token = i % blocks * block;
      if (packed.segment_count(row) == 0) continue;
      const int64_t x_at = row * op.x_row_stride + token * op.x_token_stride;
      const int64_t y_at = row * op.y_row_stride + token * op.y_token_stride;
      DeltaBlock part{};
      part.x = static_cast<const char*>(op.x) + x_at * size;
      part.y = static_cast<char*>(op.y) + y_at * size;
      part.x_stride = op.x_token_stride;
      part.y_stride = op.y_token_stride;
      part.tokens = op.tokens - token < block ? op.tokens - token : block;
      part.K = op.K;
      part.N = op.N;
      part.segments = packed.segments(row);
      part.segment_count = packed.segment_count(row);
      part.padded_rank = packed.padded_rank(row);
      part.scratch = scratch;
      kernels.lora_delta[int(op.dtype)](part);
    }
  });
  packed_memory.trim();
}

}  // namespace cmlora::cpu
