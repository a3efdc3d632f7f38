#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "ops/stream.h"

// One of two files of this name; CMake picks it by the build's include directories.

namespace cmlora {

template <auto make, auto run>
struct OnStream;

template <typename Op, typename... Args, Op (*make)(Args...), void (*run)(const Op&, const Stream&)>
struct OnStream<make, run> {
  static void call(Args... args, int device, uintptr_t stream) {
    run(make(args...), {device, stream});
  }
};

// Binds a function in m's submodule cuda.
template <auto function>
void bind_cuda(nanobind::module_& m, const char* name) {
  nanobind::module_ gpu = m.attr("cuda");
  gpu.def(name, function);
}

// Binds an op there: the arguments of `make`, then device and stream.
template <auto make, auto run>
void bind_cuda(nanobind::module_& m, const char* name) {
  bind_cuda<OnStream<make, run>::call>(m, name);
}

}  // namespace cmlora
