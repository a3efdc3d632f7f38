// Compiled when CMLORA_CUDA is OFF.
#include "ops/cuda_status.h"

namespace cmlora::cuda {

const char* missing() { return "cmlora_fast was built without its CUDA kernels (CMLORA_CUDA=OFF)"; }

}  // namespace cmlora::cuda
