#pragma once

#include <cstdint>

namespace cmlora::cpu {

// torch/csrc/stable/c/shim.h: exported with C linkage by libtorch_cpu since 2.10; 0 is success.
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                     void (*body)(int64_t, int64_t, void*), void* context);

// The function of the torch that this process has loaded, or null.
TorchParallelFor find_torch_pool();

}  // namespace cmlora::cpu
