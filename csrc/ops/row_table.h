#pragma once

#include <cstdint>

namespace cmlora {

// Which adapters each row takes, and how strongly: entries row_ptr[r] to row_ptr[r + 1] of
// row_slot and row_scale; slot s owns the ranks slots[s] to slots[s + 1] of the slabs a and b.
struct RowTable {
  const int32_t* slots;     // [slot_count + 1]
  const int32_t* row_ptr;   // [rows + 1]
  const int32_t* row_slot;  // [entries]
  const float* row_scale;   // [entries]
  int64_t slot_count;
  int64_t rows;
  int64_t entries;
  int64_t total_rank;  // ranks that a and b hold
};

// Throws std::invalid_argument, naming the op, unless every index lies inside its array.
void check_row_table(const char* op, const RowTable& table);

// A matrix of any strides, counted in elements.
struct Matrix {
  const void* data;
  int64_t row_stride;
  int64_t col_stride;
};

}  // namespace cmlora
