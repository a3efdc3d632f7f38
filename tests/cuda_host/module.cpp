#include "bindings/bind.h"
#include "cuda_runtime.h"

NB_MODULE(_cuda_host, m) {
  m.def_submodule("cuda");
  m.def("device", host_cuda::device);
  cmlora::bind_clora(m);
  cmlora::bind_lora(m);
  cmlora::bind_latents(m);
  cmlora::bind_runtime(m);
  cmlora::bind_transformer(m);
}
