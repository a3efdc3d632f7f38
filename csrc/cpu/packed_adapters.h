#pragma once

#include "cpu/packed_rows.h"
#include "ops/lora_delta.h"

namespace cmlora::cpu {

// All adapters of a layer, packed once for lora_delta and kept by their owner, who makes another
// when they change.
class PackedAdapters {
 public:
  PackedAdapters(const Matrix& a, const Matrix& b, const int32_t* slots, int64_t slot_count,
                 int64_t K, int64_t N, DType dtype, int isa);

  // op.a and op.b are not read. Throws std::invalid_argument unless sizes and slots are those
  // that were packed.
  void lora_delta(const LoraDelta& op) const;

 private:
  const Kernels& kernels_;
  int64_t K_;
  int64_t N_;
  int64_t slot_count_;
  Scratch<float> memory_;
  PackedSlots slots_;
};

}  // namespace cmlora::cpu
