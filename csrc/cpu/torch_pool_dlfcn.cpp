#include <dlfcn.h>

#include <initializer_list>

#include "cpu/torch_pool.h"

namespace cmlora::cpu {

TorchParallelFor find_torch_pool() {
  // RTLD_NOLOAD finds the library by its name among those loaded and never loads a second torch.
  for (const char* name : {"libtorch_cpu.so", "@rpath/libtorch_cpu.dylib"}) {
    if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) {
      return reinterpret_cast<TorchParallelFor>(dlsym(library, "torch_parallel_for"));
    }
  }
  return nullptr;
}

}  // namespace cmlora::cpu
