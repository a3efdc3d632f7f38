#pragma once

#include <cstdint>
#include <vector>

#include "common/scratch.h"
#include "cpu/kernels.h"

namespace cmlora::cpu {

// The adapters that a row table uses, packed for the kernels; slots that no row uses are not read.
class PackedRows {
 public:
  // shrink [ΣR, K] may be null (data) when only `expand` [ΣR, columns] is wanted.
  PackedRows(const Kernels& kernels, DType dtype, const RowTable& table, const Matrix& shrink,
             int64_t K, const Matrix& expand, int64_t columns, Scratch<float>* memory);

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
