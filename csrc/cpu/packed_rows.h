#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "cpu/pack_kernels.h"
#include "cpu/scratch.h"

namespace cmlora::cpu {

// Adapters packed for the kernels of one instruction set.
class PackedSlots {
 public:
  struct Slot {
    int64_t first;
    int64_t rank;  // 0 where the slot was not wanted
    const float* shrink;
    const float* expand;
  };

  // Packs the wanted slots and reads no other. shrink [ΣR, K] may be null (data) when only
  // `expand` [ΣR, columns] is needed. Lasts as long as `memory` is not used for something else.
  PackedSlots(const Kernels& kernels, DType dtype, const int32_t* slots,
              const std::vector<bool>& wanted, const Matrix& shrink, int64_t K,
              const Matrix& expand, int64_t columns, Scratch<float>* memory);

  const Slot& operator[](int64_t slot) const { return slots_[slot]; }

 private:
  std::vector<Slot> slots_;
};

// The slots that the rows of a table use.
std::vector<bool> used_slots(const RowTable& table);

// The segments of every row of a table.
class PackedRows {
 public:
  PackedRows(const Kernels& kernels, const RowTable& table, const PackedSlots& slots);

  const Segment* segments(int64_t row) const { return segments_.data() + start_[row]; }
  int64_t segment_count(int64_t row) const { return start_[row + 1] - start_[row]; }
  int64_t padded_rank(int64_t row) const { return padded_rank_[row]; }
  int64_t largest_padded_rank() const { return largest_; }

 private:
  std::vector<Segment> segments_;     // of all rows
  std::vector<int64_t> start_;        // [rows + 1]
  std::vector<int64_t> padded_rank_;  // [rows]
  int64_t largest_ = 0;
};

}  // namespace cmlora::cpu
