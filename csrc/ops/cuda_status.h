#pragma once

#include <string>

namespace cmlora::cuda {

// Why this build has no CUDA kernels or this machine no driver for them; empty when both are there.
// Creates no CUDA context.
std::string missing();

}  // namespace cmlora::cuda
