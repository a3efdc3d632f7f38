#pragma once

namespace cmlora::cuda {

// Null when this build has CUDA kernels, else why it has none.
const char* missing();

}  // namespace cmlora::cuda
