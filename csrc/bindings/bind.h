#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <cstdint>

#include "bind_cuda.h"

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

template <auto make, auto run>
struct OnCpu;

template <typename Op, typename... Args, Op (*make)(Args...), void (*run)(const Op&, int)>
struct OnCpu<make, run> {
  static void call(Args... args, int isa) {
    const Op op = make(args...);
    nanobind::gil_scoped_release release;
    run(op, isa);
  }
};

// Binds an op in `m`: the arguments of `make`, then the instruction set.
template <auto make, auto cpu>
void bind_cpu(nanobind::module_& m, const char* name) {
  m.def(name, OnCpu<make, cpu>::call);
}

// Binds an op there and, under the same name, in m's submodule cuda.
template <auto make, auto cpu, auto cuda>
void bind_op(nanobind::module_& m, const char* name) {
  bind_cpu<make, cpu>(m, name);
  bind_cuda<make, cuda>(m, name);
}

// Each expects a submodule cuda.
void bind_clora(nanobind::module_& m);
void bind_lora(nanobind::module_& m);
void bind_latents(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);
void bind_transformer(nanobind::module_& m);

}  // namespace cmlora
