#include "cpu/kernels.h"
#include "cpu/simd_avx2.h"

namespace cmlora::cpu {

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = kernel_table<Avx2Simd>();

}  // namespace cmlora::cpu
