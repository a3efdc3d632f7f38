#pragma once

#include <vector>

namespace cmlora::cpu {

struct Kernels;

struct Isa {
  const Kernels* kernels;
  bool available;
  const char* reason;
};

// All instruction sets of this build, slowest first.
const std::vector<Isa>& isas();

// Index of the fastest available one.
int best_isa();

// Kernels of an available instruction set; throws std::invalid_argument for any other index.
const Kernels& kernels_of(int isa);

}  // namespace cmlora::cpu
