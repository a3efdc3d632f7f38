#include "cpu/torch_pool.h"

namespace cmlora::cpu {

// Compiled where there is no dlopen: the thread fallback serves.
TorchParallelFor find_torch_pool() { return nullptr; }

}  // namespace cmlora::cpu
