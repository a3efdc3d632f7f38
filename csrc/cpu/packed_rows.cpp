#include "cpu/packed_rows.h"

#include "common/parallel.h"

namespace cmlora::cpu {
namespace {

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The matrix from row `first` on.
Matrix skip_rows(const Matrix& m, int64_t first, DType dtype) {
  const char* data = static_cast<const char*>(m.data);
  return {data + first * m.row_stride * element_size(dtype), m.row_stride, m.col_stride};
}

// A used slot and where in the packed memory its two factors begin.
struct PackedSlot {
  int64_t first;
  int64_t rank;
  int64_t shrink_at;
  int64_t expand_at;
};

}  // namespace

PackedRows::PackedRows(const Kernels& kernels, DType dtype, const RowTable& table,
                       const Matrix& shrink, int64_t K, const Matrix& expand, int64_t columns,
                       Scratch<float>* memory) {
  constexpr int64_t kUnused = -1;
  std::vector<int64_t> place(table.slot_count, kUnused);
  std::vector<PackedSlot> used;
  int64_t total = 0;
  for (int64_t i = table.row_ptr[0]; i < table.row_ptr[table.rows]; ++i) {
    const int64_t slot = table.row_slot[i];
    const int64_t first = table.slots[slot], rank = table.slots[slot + 1] - first;
    if (rank == 0 || place[slot] != kUnused) continue;
    place[slot] = int64_t(used.size());
    const int64_t shrink_size = shrink.data ? round_up(rank, kernels.width) * K : 0;
    used.push_back({first, rank, total, total + shrink_size});
    total += shrink_size + rank * round_up(columns, 2 * kernels.width);
  }

  float* packed = memory->get(total);
  const int64_t unit = used.empty() ? 1 : total / int64_t(used.size());
  parallel_for(int64_t(used.size()), grain_for(unit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PackedSlot& slot = used[i];
      const Matrix a = skip_rows(shrink, shrink.data ? slot.first : 0, dtype);
      const Matrix b = skip_rows(expand, slot.first, dtype);
      if (a.data) kernels.pack_shrink[int(dtype)](a, slot.rank, K, packed + slot.shrink_at);
      kernels.pack_expand[int(dtype)](b, slot.rank, columns, packed + slot.expand_at);
    }
  });

  start_.push_back(0);
  for (int64_t row = 0; row < table.rows; ++row) {
    int64_t padded = 0;
    for (int64_t i = table.row_ptr[row]; i < table.row_ptr[row + 1]; ++i) {
      if (place[table.row_slot[i]] == kUnused) continue;  // rank 0
      const PackedSlot& slot = used[place[table.row_slot[i]]];
      segments_.push_back({packed + slot.shrink_at, packed + slot.expand_at, slot.first, slot.rank,
                           table.row_scale[i]});
      padded += round_up(slot.rank, kernels.width);
    }
    start_.push_back(int64_t(segments_.size()));
    padded_rank_.push_back(padded);
    largest_ = padded > largest_ ? padded : largest_;
  }
}

}  // namespace cmlora::cpu
