#include "cpu/isa.h"

#include <stdexcept>

namespace cmlora::cpu {

int best_isa() {
  int best = 0;
  for (int i = 0; i < int(isas().size()); ++i) {
    if (isas()[i].available) best = i;
  }
  return best;
}

const Kernels& kernels_of(int isa) {
  if (isa < 0 || isa >= int(isas().size()) || !isas()[isa].available) {
    throw std::invalid_argument("no such instruction set on this machine");
  }
  return *isas()[isa].kernels;
}

}  // namespace cmlora::cpu
