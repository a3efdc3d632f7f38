#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <cstdint>

#include "ops/stream.h"

// Tensors arrive as addresses, sizes and strides (in elements): a third of a microsecond a call,
// where one nb::ndarray costs four. The Python op has checked all of them, see ops/_check.py.

namespace cmlora {

// Sizes or strides, as shape and stride() of a tensor give them.
template <size_t n>
using Sizes = std::array<int64_t, n>;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Binds an op in m's submodule cuda: the arguments of `make`, then device and stream.
template <typename Op, typename... Args>
void bind_cuda(nanobind::module_& m, const char* name, Op (*make)(Args...),
               void (*cuda)(const Op&, const Stream&)) {
  nanobind::module_ gpu = m.attr("cuda");
  gpu.def(name, [make, cuda](Args... args, int device, uintptr_t stream) {
    cuda(make(args...), {device, stream});
  });
}

// Binds an op there and, under the same name, in `m`: the arguments of `make`, then the
// instruction set.
template <typename Op, typename... Args>
void bind_op(nanobind::module_& m, const char* name, Op (*make)(Args...),
             void (*cpu)(const Op&, int), void (*cuda)(const Op&, const Stream&)) {
  m.def(name, [make, cpu](Args... args, int isa) {
    const Op op = make(args...);
    nanobind::gil_scoped_release release;
    cpu(op, isa);
  });
  bind_cuda(m, name, make, cuda);
}

// Each expects a submodule cuda.
void bind_clora(nanobind::module_& m);
void bind_lora(nanobind::module_& m);
void bind_latents(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);
void bind_transformer(nanobind::module_& m);

}  // namespace cmlora
