#include <cuda_runtime.h>

#include "ops/cuda_status.h"

namespace cmlora::cuda {
namespace {

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

std::string missing() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "this machine has no NVIDIA driver";
  }
  cudaRuntimeGetVersion(&runtime);
  if (driver / 1000 < runtime / 1000) {
    return "the NVIDIA driver knows CUDA up to " + version(driver) + "; this build needs " +
           version(runtime / 1000 * 1000);
  }
  return "";
}

}  // namespace cmlora::cuda
