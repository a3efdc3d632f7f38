#include "cpu/kernels.h"
#include "cpu/simd_avx512.h"

namespace cmlora::cpu {

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = kernel_table<Avx512Simd>();

}  // namespace cmlora::cpu
