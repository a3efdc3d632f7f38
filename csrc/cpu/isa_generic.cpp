#include "cpu/isa.h"

namespace cmlora::cpu {

extern const Kernels kScalarKernels;

// Compiled on processors and with compilers for which no other kernels were written and tested.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = {{&kScalarKernels, true, "plain C++"}};
  return list;
}

}  // namespace cmlora::cpu
