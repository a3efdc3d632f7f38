// In place of csrc/cuda where CMLORA_CUDA is OFF.
#include "ops/cuda_status.h"

namespace cmlora::cuda {

std::string missing() { return "cmlora_fast was built without its CUDA kernels (CMLORA_CUDA=OFF)"; }

}  // namespace cmlora::cuda
