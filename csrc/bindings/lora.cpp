#include "bindings/bind.h"
#include "cpu/packed_adapters.h"
#include "ops/lora_delta.h"
#include "ops/lora_fold.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace cmlora {
namespace {

void bind_row_table(nb::module_& m) {
  nb::class_<RowTable>(m, "RowTable")
      .def("__init__",
           [](RowTable* self, uintptr_t slots, uintptr_t row_ptr, uintptr_t row_slot,
              uintptr_t row_scale, int64_t slot_count, int64_t rows, int64_t entries,
              int64_t total_rank) {
             new (self) RowTable{at<int32_t>(slots),
                                 at<int32_t>(row_ptr),
                                 at<int32_t>(row_slot),
                                 at<float>(row_scale),
                                 slot_count,
                                 rows,
                                 entries,
                                 total_rank};
           })
      .def("check", [](const RowTable& table, const char* op) { check_row_table(op, table); });
}

LoraDelta lora_delta_op(const RowTable& table, uintptr_t y, uintptr_t x, uintptr_t a,
                        int64_t a_row_stride, int64_t a_col_stride, uintptr_t b,
                        int64_t b_row_stride, int64_t b_col_stride, int64_t tokens, int64_t K,
                        int64_t N, int64_t y_row_stride, int64_t y_token_stride,
                        int64_t x_row_stride, int64_t x_token_stride, int dtype) {
  const Matrix a_matrix{at<void>(a), a_row_stride, a_col_stride};
  const Matrix b_matrix{at<void>(b), b_row_stride, b_col_stride};
  return {at<void>(y), at<void>(x),  a_matrix,       b_matrix,     table,          tokens,      K,
          N,           y_row_stride, y_token_stride, x_row_stride, x_token_stride, DType(dtype)};
}

void bind_packed_adapters(nb::module_& m) {
  nb::class_<cpu::PackedAdapters>(m, "PackedAdapters")
      .def("__init__",
           [](cpu::PackedAdapters* self, uintptr_t a, int64_t a_row_stride, int64_t a_col_stride,
              uintptr_t b, int64_t b_row_stride, int64_t b_col_stride, uintptr_t slots,
              int64_t slot_count, int64_t K, int64_t N, int dtype, int isa) {
             const Matrix a_matrix{at<void>(a), a_row_stride, a_col_stride};
             const Matrix b_matrix{at<void>(b), b_row_stride, b_col_stride};
             new (self) cpu::PackedAdapters(a_matrix, b_matrix, at<int32_t>(slots), slot_count, K,
                                            N, DType(dtype), isa);
           })
      .def("lora_delta",
           [](const cpu::PackedAdapters& adapters, const RowTable& table, uintptr_t y, uintptr_t x,
              int64_t tokens, int64_t K, int64_t N, int64_t y_row_stride, int64_t y_token_stride,
              int64_t x_row_stride, int64_t x_token_stride, int dtype) {
             const LoraDelta op =
                 lora_delta_op(table, y, x, 0, 0, 0, 0, 0, 0, tokens, K, N, y_row_stride,
                               y_token_stride, x_row_stride, x_token_stride, dtype);
             nb::gil_scoped_release release;
             adapters.lora_delta(op);
           });
}

LoraFold lora_fold_op(const RowTable& table, uintptr_t out, uintptr_t w, int64_t w_stride,
                      uintptr_t a, int64_t a_row_stride, int64_t a_col_stride, uintptr_t b,
                      int64_t b_row_stride, int64_t b_col_stride, int64_t K, int64_t N, int dtype) {
  const Matrix a_matrix{at<void>(a), a_row_stride, a_col_stride};
  const Matrix b_matrix{at<void>(b), b_row_stride, b_col_stride};
  return {at<void>(out), at<void>(w), a_matrix, b_matrix, table, K, N, w_stride, DType(dtype)};
}

}  // namespace

void bind_lora(nb::module_& m) {
  bind_row_table(m);
  bind_packed_adapters(m);
  bind_op(m, "lora_delta", lora_delta_op, cpu::lora_delta, cuda::lora_delta);
  bind_op(m, "lora_fold", lora_fold_op, cpu::lora_fold, cuda::lora_fold);
}

}  // namespace cmlora
