#include <cpuid.h>

#include "cpu/isa.h"

namespace cmlora::cpu {

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

namespace {

// __builtin_cpu_supports also asks whether the system saves the wide registers; it knows no f16c
// in older compilers.
bool has_avx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

Isa isa(const Kernels* kernels, bool available) {
  return {kernels, available, available ? "the processor has it" : "the processor lacks it"};
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = {
      {&kScalarKernels, true, "plain C++"},
      isa(&kAvx2Kernels, has_avx2()),
      isa(&kAvx512Kernels, has_avx512()),
  };
  return list;
}

}  // namespace cmlora::cpu
