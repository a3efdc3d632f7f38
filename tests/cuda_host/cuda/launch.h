#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "ops/stream.h"

namespace cmlora::cuda {

struct DeviceLimits {
  int processors;
  int shared_bytes;
};

const DeviceLimits& device_limits(int device);

template <typename Params>
void launch(const char* op, void (*kernel)(Params), dim3 grid, int threads, int shared_bytes,
            const Stream& stream, Params params) {
  if (shared_bytes > device_limits(stream.device).shared_bytes) {
    throw std::runtime_error(std::string(op) + ": too much shared memory");
  }
  host_cuda::run(grid, threads, shared_bytes, [&] { kernel(params); });
}

}  // namespace cmlora::cuda
