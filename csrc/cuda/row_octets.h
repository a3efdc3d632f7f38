#pragma once

#include "cuda/octet.h"
#include "ops/row_table.h"

namespace cmlora::cuda {

// Eight ranks of one adapter of a row, fewer at its end; a row's adapters stand side by side.
struct RankOctet {
  int rank;   // the first, in the slabs
  int count;  // 0 past the row's last adapter
  float scale;
};

// Writes octets first .. first + count of a row; returns how many it has. For whole warps; `out`
// belongs to the warp alone.
__device__ inline int list_octets(const RowTable& table, int64_t row, int first, int count,
                                  RankOctet* out) {
  const int lane = threadIdx.x % 32;
  const int begin = table.row_ptr[row], end = table.row_ptr[row + 1];
  int total = 0;
  __syncwarp();  // all have read what `out` held
  for (int from = begin; from < end; from += 32) {
    RankOctet octet{0, 0, 0.0f};
    const int entry = from + lane;
    int ranks = 0;
    if (entry < end) {
      const int slot = table.row_slot[entry];
      octet.rank = table.slots[slot];
      octet.scale = table.row_scale[entry];
      ranks = table.slots[slot + 1] - octet.rank;
    }
    const int octets = (ranks + kOctet - 1) / kOctet;
    int stop = octets;  // sum up to and with this lane
    for (int distance = 1; distance < 32; distance *= 2) {
      const int lower = __shfl_up_sync(kWholeWarp, stop, distance);
      if (lane >= distance) stop += lower;
    }
    int at = total + stop - octets - first;
    for (; ranks > 0; ranks -= kOctet, octet.rank += kOctet, ++at) {
      octet.count = ranks < kOctet ? ranks : kOctet;
      if (at >= 0 && at < count) out[at] = octet;
    }
    total += __shfl_sync(kWholeWarp, stop, 31);
  }
  const int filled = total > first ? total - first : 0;
  for (int at = filled + lane; at < count; at += 32) out[at] = {0, 0, 0.0f};
  __syncwarp();
  return total;
}

}  // namespace cmlora::cuda
