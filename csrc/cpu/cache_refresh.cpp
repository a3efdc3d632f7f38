#include "ops/cache_refresh.h"

#include <cstring>

#include "common/planes.h"
#include "cpu/parallel.h"

namespace cmlora::cpu {

void cache_refresh(const CacheRefresh& op, int) {
  const int64_t *to_stride = op.cache_strides, *from_stride = op.fresh_strides;
  const Runs runs = find_runs(op.C, op.H, op.W, to_stride + 1, from_stride + 1);
  const int64_t per_row = runs.outer * runs.inner;
  parallel_for(op.R * per_row, grain_for(runs.length / 16), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / per_row, c = i % per_row / runs.inner, h = i % runs.inner;
      const int64_t to = op.rows[row] * to_stride[0] + c * to_stride[1] + h * to_stride[2];
      const int64_t from = row * from_stride[0] + c * from_stride[1] + h * from_stride[2];
      std::memcpy(static_cast<char*>(op.cache) + to * op.element_size,
                  static_cast<const char*>(op.fresh) + from * op.element_size,
                  size_t(runs.length * op.element_size));
    }
  });
}

}  // namespace cmlora::cpu
