#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "ops/stream.h"

namespace cmlora::cuda {

inline void check(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // does not stay for the next call to find
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(status));
}

// Makes a device current for a scope.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    check(op, cudaGetDevice(&previous_));
    if (previous_ != device) check(op, cudaSetDevice(device)), changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// What the launches ask of a device; read once.
struct DeviceLimits {
  int processors;
  int shared_bytes;  // one block's shared memory at most
};

const DeviceLimits& device_limits(int device);

constexpr int kPlainSharedBytes = 48 << 10;  // above, a kernel has to ask for it

// Starts `kernel`, which takes one struct, on the stream; waits for nothing.
template <typename Params>
void launch(const char* op, void (*kernel)(Params), dim3 grid, int threads, int shared_bytes,
            const Stream& stream, Params params) {
  const DeviceGuard guard(op, stream.device);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kPlainSharedBytes) {
    check(op, cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   device_limits(stream.device).shared_bytes));
  }
  void* arguments[] = {&params};
  check(op, cudaLaunchKernel(function, grid, dim3(threads), arguments, size_t(shared_bytes),
                             reinterpret_cast<cudaStream_t>(stream.handle)));
}

}  // namespace cmlora::cuda
