#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

// Tensors arrive as addresses, sizes and strides (in elements): a third of a microsecond a call,
// where one nb::ndarray costs four. The Python op has checked all of them, see ops/_check.py.

namespace cmlora {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_lora(nanobind::module_& m);
void bind_latents(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);
void bind_transformer(nanobind::module_& m);

}  // namespace cmlora
