#include "bindings/bind.h"
#include "cpu/packed_adapters.h"
#include "ops/lora_delta.h"
#include "ops/lora_fold.h"
#include "ops/scale_ranks.h"

namespace nb = nanobind;

namespace cmlora {
namespace {

Matrix matrix(uintptr_t data, const Sizes<2>& strides) {
  return {at<void>(data), strides[0], strides[1]};
}

RowTable row_table(const std::array<uintptr_t, 4>& tables, const Sizes<4>& counts) {
  return {at<int32_t>(tables[0]),
          at<int32_t>(tables[1]),
          at<int32_t>(tables[2]),
          at<float>(tables[3]),
          counts[0],
          counts[1],
          counts[2],
          counts[3]};
}

void bind_row_table(nb::module_& m) {
  nb::class_<RowTable>(m, "RowTable")
      .def("__init__",
           [](RowTable* self, const std::array<uintptr_t, 4>& tables, const Sizes<4>& counts) {
             new (self) RowTable(row_table(tables, counts));
           })
      .def("check", [](const RowTable& table, const char* op) { check_row_table(op, table); });
}

// sizes: rows, tokens, R; strides of h's rows and tokens.
ScaleRanks scale_ranks_op(uintptr_t h, uintptr_t scales, const Sizes<3>& sizes,
                          const Sizes<2>& strides, int dtype) {
  return {at<void>(h), at<float>(scales), sizes[0],   sizes[1],
          sizes[2],    strides[0],        strides[1], DType(dtype)};
}

LoraDelta lora_delta_op(const RowTable& table, uintptr_t y, const Sizes<3>& y_shape,
                        const Sizes<3>& y_strides, uintptr_t x, const Sizes<3>& x_shape,
                        const Sizes<3>& x_strides, uintptr_t a, const Sizes<2>& a_strides,
                        uintptr_t b, const Sizes<2>& b_strides, int dtype) {
  return {at<void>(y),  at<void>(x),  matrix(a, a_strides), matrix(b, b_strides), table,
          x_shape[1],   x_shape[2],   y_shape[2],           y_strides[0],         y_strides[1],
          x_strides[0], x_strides[1], DType(dtype)};
}

LoraFold lora_fold_op(const RowTable& table, uintptr_t out, uintptr_t w, const Sizes<2>& shape,
                      const Sizes<2>& strides, uintptr_t a, const Sizes<2>& a_strides, uintptr_t b,
                      const Sizes<2>& b_strides, int dtype) {
  return {at<void>(out), at<void>(w), matrix(a, a_strides), matrix(b, b_strides), table,
          shape[1],      shape[0],    strides[0],           DType(dtype)};
}

void bind_packed_adapters(nb::module_& m) {
  using cpu::PackedAdapters;
  nb::class_<PackedAdapters>(m, "PackedAdapters")
      .def("__init__",
           [](PackedAdapters* self, uintptr_t a, const Sizes<2>& a_shape, const Sizes<2>& a_strides,
              uintptr_t b, const Sizes<2>& b_shape, const Sizes<2>& b_strides, uintptr_t slots,
              int64_t slot_count, int dtype, int isa) {
             new (self)
                 PackedAdapters(matrix(a, a_strides), matrix(b, b_strides), at<int32_t>(slots),
                                slot_count, a_shape[1], b_shape[0], DType(dtype), isa);
           })
      .def("lora_delta", [](const PackedAdapters& adapters, const RowTable& table, uintptr_t y,
                            const Sizes<3>& y_shape, const Sizes<3>& y_strides, uintptr_t x,
                            const Sizes<3>& x_shape, const Sizes<3>& x_strides, int dtype) {
        const LoraDelta op =
            lora_delta_op(table, y, y_shape, y_strides, x, x_shape, x_strides, 0, {}, 0, {}, dtype);
        nb::gil_scoped_release release;
        adapters.lora_delta(op);
      });
}

}  // namespace

void bind_lora(nb::module_& m) {
  bind_cuda<scale_ranks_op, cuda::scale_ranks>(m, "scale_ranks");
  bind_row_table(m);
  bind_packed_adapters(m);
  bind_cpu<lora_delta_op, cpu::lora_delta>(m, "lora_delta");
  bind_op<lora_fold_op, cpu::lora_fold, cuda::lora_fold>(m, "lora_fold");
}

}  // namespace cmlora
