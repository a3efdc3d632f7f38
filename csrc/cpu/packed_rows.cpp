#include "cpu/packed_rows.h"

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace cmlora::cpu {
namespace {

int64_t panels_of(int64_t value, int64_t width) { return (value + width - 1) / width; }

// One panel to pack: `count` ranks of shrink, or columns of expand, from `from` on.
struct Panel {
  Matrix from;
  int64_t rank;
  int64_t count;
  float* to;
  bool shrink;
};

Matrix moved(const Matrix& m, int64_t row, int64_t column, DType dtype) {
  const int64_t offset = row * m.row_stride + column * m.col_stride;
  return {static_cast<const char*>(m.data) + offset * element_size(dtype), m.row_stride,
          m.col_stride};
}

}  // namespace

std::vector<bool> used_slots(const RowTable& table) {
  std::vector<bool> used(table.slot_count, false);
  for (int64_t i = table.row_ptr[0]; i < table.row_ptr[table.rows]; ++i) {
    used[table.row_slot[i]] = true;
  }
  return used;
}

PackedSlots::PackedSlots(const Kernels& kernels, DType dtype, const int32_t* slots,
                         const std::vector<bool>& wanted, const Matrix& shrink, int64_t K,
                         const Matrix& expand, int64_t columns, Scratch<float>* memory) {
  const int64_t width = kernels.width;
  const int64_t shrink_size = shrink.data ? kernels.shrink_panel(K) : 0;
  const int64_t expand_panels = panels_of(columns, 2 * width);
  int64_t total = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const int64_t rank = wanted[i] ? slots[i + 1] - slots[i] : 0;
    slots_.push_back({slots[i], rank, nullptr, nullptr});
    total += panels_of(rank, width) * shrink_size + expand_panels * rank * 2 * width;
  }

  float* to = memory->get(total);
  std::vector<Panel> work;
  for (Slot& slot : slots_) {
    slot.shrink = to;
    for (int64_t r = 0; shrink.data && r < slot.rank; r += width, to += shrink_size) {
      const int64_t ranks = std::min(width, slot.rank - r);
      work.push_back({moved(shrink, slot.first + r, 0, dtype), slot.rank, ranks, to, true});
    }
    slot.expand = to;
    for (int64_t n = 0; slot.rank > 0 && n < columns; n += 2 * width, to += slot.rank * 2 * width) {
      const int64_t count = std::min(2 * width, columns - n);
      work.push_back({moved(expand, slot.first, n, dtype), slot.rank, count, to, false});
    }
  }
  const int64_t unit = work.empty() ? 1 : total / int64_t(work.size());
  parallel_for(int64_t(work.size()), grain_for(unit), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Panel& panel = work[i];
      if (panel.shrink) {
        kernels.pack_shrink[int(dtype)](panel.from, panel.count, K, panel.to);
      } else {
        kernels.pack_expand[int(dtype)](panel.from, panel.rank, panel.count, panel.to);
      }
    }
  });
}

PackedRows::PackedRows(const Kernels& kernels, const RowTable& table, const PackedSlots& slots) {
  start_.push_back(0);
  for (int64_t row = 0; row < table.rows; ++row) {
    int64_t padded = 0;
    for (int64_t i = table.row_ptr[row]; i < table.row_ptr[row + 1]; ++i) {
      const PackedSlots::Slot& slot = slots[table.row_slot[i]];
      if (slot.rank == 0) continue;
      segments_.push_back({slot.shrink, slot.expand, slot.first, slot.rank, table.row_scale[i]});
      padded += panels_of(slot.rank, kernels.width) * kernels.width;
    }
    start_.push_back(int64_t(segments_.size()));
    padded_rank_.push_back(padded);
    largest_ = std::max(largest_, padded);
  }
}

}  // namespace cmlora::cpu
