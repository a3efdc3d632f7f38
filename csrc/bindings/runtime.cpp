#include <nanobind/stl/string.h>

#include <stdexcept>

#include "bindings/bind.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "ops/cuda_status.h"

namespace nb = nanobind;

namespace cmlora {

void bind_runtime(nb::module_& m) {
  m.def("isas", [] {
    nb::list list;
    for (const cpu::Isa& isa : cpu::isas()) {
      list.append(nb::make_tuple(isa.kernels->name, isa.available, isa.reason));
    }
    return list;
  });
  m.def("best_isa", cpu::best_isa);
  m.def("cuda_missing", cuda::missing);

  using cpu::Pool;
  nb::enum_<Pool>(m, "Pool")
      .value("torch", Pool::kTorch)
      .value("threads", Pool::kThreads)
      .value("serial", Pool::kSerial);
  m.def("current_pool", cpu::current_pool);
  m.def("set_fallback_threads", cpu::set_fallback_threads);
  m.def("use_pool", [](Pool pool) {
    if (!cpu::use_pool(pool)) throw std::runtime_error("the loaded torch exports no thread pool");
  });
}

}  // namespace cmlora
