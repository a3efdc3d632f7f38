#include "bindings/bind.h"

NB_MODULE(_C, m) {
  m.doc() =
      "C++ kernels of cmlora_fast; call them through cmlora_fast.ops, which checks arguments.";
  m.def_submodule("cuda", "The same kernels for CUDA tensors, on a stream.");
  cmlora::bind_clora(m);
  cmlora::bind_lora(m);
  cmlora::bind_latents(m);
  cmlora::bind_runtime(m);
  cmlora::bind_transformer(m);
}
