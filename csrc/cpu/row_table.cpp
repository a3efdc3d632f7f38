#include "ops/row_table.h"

#include <stdexcept>
#include <string>

namespace cmlora {
namespace {

[[noreturn]] void fail(const char* op, const std::string& expected, int64_t got) {
  throw std::invalid_argument(std::string(op) + ": expected " + expected + "; got " +
                              std::to_string(got));
}

// Offsets that never fall, between 0 and `limit`.
void check_offsets(const char* op, const char* name, const int32_t* offsets, int64_t count,
                   int64_t limit, const char* limit_name) {
  int32_t previous = 0;
  for (int64_t i = 0; i <= count; ++i) {
    if (offsets[i] < previous || offsets[i] > limit) {
      fail(op,
           std::string(name) + "[" + std::to_string(i) + "] between " + std::to_string(previous) +
               " (the entry before) and " + std::to_string(limit) + " (" + limit_name + ")",
           offsets[i]);
    }
    previous = offsets[i];
  }
}

}  // namespace

void check_row_table(const char* op, const RowTable& table) {
  check_offsets(op, "slots", table.slots, table.slot_count, table.total_rank,
                "the ranks in a and b");
  check_offsets(op, "row_ptr", table.row_ptr, table.rows, table.entries, "the size of row_slot");
  for (int64_t i = table.row_ptr[0]; i < table.row_ptr[table.rows]; ++i) {
    if (table.row_slot[i] < 0 || table.row_slot[i] >= table.slot_count) {
      fail(op,
           "row_slot[" + std::to_string(i) + "] in 0 .. " + std::to_string(table.slot_count - 1),
           table.row_slot[i]);
    }
  }
}

}  // namespace cmlora
