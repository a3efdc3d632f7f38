#pragma once

#include <cstdint>

#include "ops/stream.h"

namespace cmlora {

// cache[rows[i]] = fresh[i].
struct CacheRefresh {
  void* cache;          // [S, C, H, W], last dimension contiguous
  const void* fresh;    // [R, C, H, W], last dimension contiguous
  const int32_t* rows;  // [R]
  int64_t S;
  int64_t R;
  int64_t C;
  int64_t H;
  int64_t W;
  int64_t cache_strides[3];  // of S, C, H
  int64_t fresh_strides[3];  // of R, C, H
  int64_t element_size;
};

namespace cpu {
void cache_refresh(const CacheRefresh& op, int isa);  // a copy: all instruction sets run the same
}

namespace cuda {
void cache_refresh(const CacheRefresh& op, const Stream& stream);
}

}  // namespace cmlora
