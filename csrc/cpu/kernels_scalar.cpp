#include "cpu/kernels.h"
#include "cpu/simd_scalar.h"

namespace cmlora::cpu {

extern const Kernels kScalarKernels;
const Kernels kScalarKernels = kernel_table<ScalarSimd>();

}  // namespace cmlora::cpu
