#pragma once

#include <cstdint>

namespace cmlora {

// Where a CUDA kernel runs: the handle is a cudaStream_t of that device.
struct Stream {
  int device;
  uintptr_t handle;
};

}  // namespace cmlora
