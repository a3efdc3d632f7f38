#include "ops/lora_delta.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/kernels.h"
#include "cpu/packed_adapters.h"
#include "cpu/parallel.h"

namespace cmlora::cpu {
namespace {

constexpr int64_t kPieces = 32;  // of one call, at most
constexpr int64_t kFewTokens = 128;

Matrix turned(const Matrix& m) { return {m.data, m.col_stride, m.row_stride}; }

void run(const LoraDelta& op, const Kernels& kernels, const PackedRows& rows) {
  const int64_t largest = rows.largest_padded_rank();
  if (largest == 0) return;
  const int64_t size = element_size(op.dtype);
  const int64_t block = 4 * kernels.tile;  // tokens
  const int64_t blocks = (op.tokens + block - 1) / block;
  const int64_t unit = block * (op.K + op.N) * largest / kernels.width;
  // Neighbours in memory belong to one thread, which prefetches them; yet enough pieces to share.
  const int64_t grain = std::max(grain_for(unit), op.table.rows * blocks / kPieces);
  parallel_for(op.table.rows * blocks, grain, [&](int64_t begin, int64_t end) {
    thread_local Scratch<float> tile_memory;
    float* scratch = tile_memory.get(kernels.delta_scratch(largest));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, token = i % blocks * block;
      if (rows.segment_count(row) == 0) continue;
      const int64_t x_at = row * op.x_row_stride + token * op.x_token_stride;
      const int64_t y_at = row * op.y_row_stride + token * op.y_token_stride;
      DeltaBlock part{};
      part.x = static_cast<const char*>(op.x) + x_at * size;
      part.y = static_cast<char*>(op.y) + y_at * size;
      part.x_stride = op.x_token_stride;
      part.y_stride = op.y_token_stride;
      part.tokens = std::min(block, op.tokens - token);
      part.K = op.K;
      part.N = op.N;
      part.segments = rows.segments(row);
      part.segment_count = rows.segment_count(row);
      part.padded_rank = rows.padded_rank(row);
      part.scratch = scratch;
      kernels.lora_delta[int(op.dtype)](part);
    }
  });
}

bool is_empty(const LoraDelta& op) { return op.table.rows == 0 || op.tokens == 0 || op.N == 0; }

void pack_and_run(const LoraDelta& op, const Kernels& kernels) {
  thread_local Scratch<float> memory;
  const PackedSlots slots(kernels, op.dtype, op.table.slots, used_slots(op.table), op.a, op.K,
                          turned(op.b), op.N, &memory);
  run(op, kernels, PackedRows(kernels, op.table, slots));
  memory.trim();
}

// Whether no adapter is used twice, and packing each is a good part of the work.
bool is_packing(const LoraDelta& op) {
  const int64_t entries = op.table.row_ptr[op.table.rows] - op.table.row_ptr[0];
  const std::vector<bool> used = used_slots(op.table);
  return op.tokens <= kFewTokens && entries == std::count(used.begin(), used.end(), true);
}

LoraDelta row_of(const LoraDelta& op, int64_t row) {
  const int64_t size = element_size(op.dtype);
  LoraDelta one = op;
  one.x = static_cast<const char*>(op.x) + row * op.x_row_stride * size;
  one.y = static_cast<char*>(op.y) + row * op.y_row_stride * size;
  one.table.row_ptr += row;
  one.table.rows = 1;
  return one;
}

}  // namespace

void lora_delta(const LoraDelta& op, int isa) {
  if (is_empty(op)) return;
  const Kernels& kernels = kernels_of(isa);
  if (!is_packing(op)) return pack_and_run(op, kernels);
  // What another core has just packed would be fetched more slowly than it is packed.
  const int64_t unit = op.tokens * (op.K + op.N) * op.table.total_rank / op.table.rows;
  parallel_for(op.table.rows, grain_for(unit / kernels.width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pack_and_run(row_of(op, row), kernels);
  });
}

PackedAdapters::PackedAdapters(const Matrix& a, const Matrix& b, const int32_t* slots,
                               int64_t slot_count, int64_t K, int64_t N, DType dtype, int isa)
    : kernels_(kernels_of(isa)),
      K_(K),
      N_(N),
      slot_count_(slot_count),
      slots_(kernels_, dtype, slots, std::vector<bool>(slot_count, true), a, K, turned(b), N,
             &memory_) {}

void PackedAdapters::lora_delta(const LoraDelta& op) const {
  if (op.K != K_ || op.N != N_ || op.table.slot_count != slot_count_) {
    throw std::invalid_argument("lora_delta_: these are not the adapters that were packed");
  }
  if (!is_empty(op)) run(op, kernels_, PackedRows(kernels_, op.table, slots_));
}

}  // namespace cmlora::cpu
