#include "ops/lora_fold.h"

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "cpu/packed_rows.h"
#include "cpu/parallel.h"

namespace cmlora::cpu {

void lora_fold(const LoraFold& op, int isa) {
  if (op.table.rows == 0 || op.N == 0 || op.K == 0) return;
  thread_local Scratch<float> packed_memory;
  const Kernels& kernels = kernels_of(isa);
  const PackedSlots slots(kernels, op.dtype, op.table.slots, used_slots(op.table),
                          Matrix{nullptr, 0, 0}, 0, op.a, op.K, &packed_memory);
  const PackedRows packed(kernels, op.table, slots);

  const int64_t size = element_size(op.dtype);
  prefer_huge_pages(op.out, op.table.rows * op.N * op.K * size);
  const int64_t largest = packed.largest_padded_rank();
  const int64_t block = 4 * kernels.tile;  // output features
  const int64_t blocks = (op.N + block - 1) / block;
  const int64_t unit = block * op.K * (largest + 4) / kernels.width;
  parallel_for(op.table.rows * blocks, grain_for(unit), [&](int64_t begin, int64_t end) {
    thread_local Scratch<float> tile_memory;
    float* scratch = tile_memory.get(kernels.delta_scratch(largest));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, n = i % blocks * block;
      FoldBlock part{};
      part.w = static_cast<const char*>(op.w) + n * op.w_stride * size;
      part.out = static_cast<char*>(op.out) + (row * op.N + n) * op.K * size;
      part.w_stride = op.w_stride;
      part.out_stride = op.K;
      part.b = op.b;
      part.b.data = static_cast<const char*>(op.b.data) + n * op.b.row_stride * size;
      part.count = op.N - n < block ? op.N - n : block;
      part.K = op.K;
      part.segments = packed.segments(row);
      part.segment_count = packed.segment_count(row);
      part.scratch = scratch;
      kernels.lora_fold[int(op.dtype)](part);
    }
  });
  packed_memory.trim();
}

}  // namespace cmlora::cpu
