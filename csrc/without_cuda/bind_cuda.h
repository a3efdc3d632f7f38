#pragma once

#include <nanobind/nanobind.h>

#include <stdexcept>

#include "ops/cuda_status.h"

namespace cmlora {

// As csrc/cuda/bind_cuda.h, of kernels that are not there: templates that are only named need no
// definition.
template <auto... functions>
void bind_cuda(nanobind::module_& m, const char* name) {
  nanobind::module_ gpu = m.attr("cuda");
  gpu.def(name, [](nanobind::args) { throw std::runtime_error(cuda::missing()); });
}

}  // namespace cmlora
