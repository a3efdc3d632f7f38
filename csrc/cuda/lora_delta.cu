#include "ops/lora_delta.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/kept_sums.h"
#include "cuda/launch.h"

// A warp owns 16 tokens of a row. It shrinks them to 32 ranks at a time, keeps those sums in
// shared memory, each lane its own, and expands them into y, which is read and written once.
// Nothing is shared between warps, so every sum has one order, whatever else runs.

namespace cmlora::cuda {
namespace {

constexpr int kTokens = 16;      // of a warp
constexpr int kColumns = 64;     // of y per round
constexpr int kMaxGroups = 16;   // tiles of ranks that are kept; 147 KB
constexpr int kCheapGroups = 4;  // kept without thought: 37 KB leave room for four blocks

struct Params {
  LoraDelta op;
  int64_t blocks_per_row;
  int64_t columns;  // of y per block, a multiple of kColumns
  int groups;       // tiles of ranks that shared memory holds
};

// The 16 tokens of a warp: addresses of a lane's two, and whether they exist.
template <typename T>
struct Tokens {
  T* top;
  T* bottom;
  bool has_top;
  bool has_bottom;

  // `first` of a row of x or y
  __device__ Tokens(T* tensor, int64_t row, int64_t row_stride, int64_t first, int64_t tokens,
                    int64_t stride, int g)
      : top(tensor + row * row_stride + (first + g) * stride),
        bottom(top + 8 * stride),
        has_top(first + g < tokens),
        has_bottom(first + g + 8 < tokens) {}
};

template <typename T>
__device__ Tokens<const T> tokens_of_x(const LoraDelta& op, int64_t row, int64_t first, int g) {
  return {static_cast<const T*>(op.x), row, op.x_row_stride, first, op.tokens,
          op.x_token_stride,           g};
}

// scale · x Aᵀ for a tile of ranks.
template <typename T, bool vector, int unroll>
__device__ Kept<T> shrink(const LoraDelta& op, const Lane& lane, const Tokens<const T>& x,
                          const RankOctet* ranks) {
  const RankOctet supplied = ranks[lane.g / 2], mine = ranks[lane.t];
  const T* rows[4];
  bool has[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int e = tile_column(lane.g, j) % kOctet;
    has[j] = e < supplied.count;
    rows[j] = static_cast<const T*>(op.a.data) + (supplied.rank + e) * op.a.row_stride;
  }
  float acc[4][4] = {};
#pragma unroll unroll
  for (int64_t first = 0; first < op.K; first += kTile) {
    const int64_t k = first + kOctet * lane.t, left = op.K - k;
    const Octet<T> top = load_octet<T>(vector, x.top + k, 1, x.has_top ? left : 0);
    const Octet<T> bottom = load_octet<T>(vector, x.bottom + k, 1, x.has_bottom ? left : 0);
    Octet<T> a[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      a[j] =
          load_octet<T>(vector, rows[j] + k * op.a.col_stride, op.a.col_stride, has[j] ? left : 0);
    }
    multiply<T>(acc, top, bottom, a);
  }
  float top[kOctet], bottom[kOctet];
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    const bool exists = e < mine.count;
    top[e] = exists ? acc[e / 2][e % 2] * mine.scale : 0.0f;
    bottom[e] = exists ? acc[e / 2][2 + e % 2] * mine.scale : 0.0f;
  }
  return keep<T>(top, bottom);
}

// The octets of b that this lane supplies for the 32 columns from n on.
template <typename T, bool vector>
__device__ void load_columns(const LoraDelta& op, const Lane& lane, int64_t n,
                             const RankOctet& ranks, Octet<T> (&columns)[4]) {
  const T* b = static_cast<const T*>(op.b.data) + ranks.rank * op.b.col_stride;
  const bool whole = vector && ranks.count == kOctet && ranks.rank % kOctet == 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t column = n + tile_column(lane.g, j);
    columns[j] = load_octet<T>(whole, b + column * op.b.row_stride, op.b.col_stride,
                               column < op.N ? ranks.count : 0);
  }
}

template <typename T>
__device__ void add(Octet<T>* y, const float (&acc)[4][4], int part) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 values = y->get(j);
    y->set(j, values.x + acc[j][part], values.y + acc[j][part + 1]);
  }
}

template <typename T, bool vector>
__global__ void __launch_bounds__(kDeltaThreads, vector ? (sizeof(T) == 2 ? 4 : 3) : 2)
    lora_delta_kernel(Params params) {
  const LoraDelta& op = params.op;
  const Lane lane = this_lane();
  const Shared shared(params.groups);
  const int64_t row = blockIdx.x / params.blocks_per_row;
  const int64_t first =
      (blockIdx.x % params.blocks_per_row * kDeltaWarps + threadIdx.x / 32) * kTokens;
  if (first >= op.tokens) return;  // the whole warp
  const int octets = list_octets(op.table, row, 0, 4 * params.groups, shared.ranks);
  if (octets == 0) return;  // the base row keeps its bits
  const Tokens<T> y(static_cast<T*>(op.y), row, op.y_row_stride, first, op.tokens,
                    op.y_token_stride, lane.g);

  // Tiles past those that fit share the last place and are made again for every 32 columns.
  const int groups = (octets + 3) / 4, last = params.groups - 1;
  const int kept = groups <= params.groups ? groups : last;
  const Tokens<const T> x = tokens_of_x<T>(op, row, first, lane.g);
  for (int group = 0; group < kept; ++group) {
    shared.store<T>(group, shrink<T, vector, 2>(op, lane, x, shared.ranks + 4 * group));
  }
  const int64_t from = blockIdx.y * params.columns;
  const int64_t to = from + params.columns < op.N ? from + params.columns : op.N;
  for (int64_t n = from; n < to; n += kColumns) {
    Octet<T> top[2], bottom[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = n + half * kTile + kOctet * lane.t;
      top[half] = load_octet<T>(vector, y.top + column, 1, y.has_top ? op.N - column : 0);
      bottom[half] = load_octet<T>(vector, y.bottom + column, 1, y.has_bottom ? op.N - column : 0);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = n + half * kTile + kOctet * lane.t;
      float acc[4][4] = {};
#pragma unroll 1
      for (int group = 0; group < groups; ++group) {
        const int place = group < kept ? group : last;
        if (group >= kept) {
          list_octets(op.table, row, 4 * group, 4, shared.ranks + 4 * last);
          const Tokens<const T> again = tokens_of_x<T>(op, row, first, lane.g);
          shared.store<T>(last, shrink<T, vector, 1>(op, lane, again, shared.ranks + 4 * last));
        }
        Octet<T> columns[4];
        load_columns<T, vector>(op, lane, n + half * kTile, shared.ranks[4 * place + lane.t],
                                columns);
        expand<T>(acc, shared.load<T>(place), columns);
      }
      add<T>(&top[half], acc, 0);
      add<T>(&bottom[half], acc, 2);
      store_octet<T>(vector, y.top + column, y.has_top ? op.N - column : 0, top[half]);
      store_octet<T>(vector, y.bottom + column, y.has_bottom ? op.N - column : 0, bottom[half]);
    }
  }
}

// Whether every octet of x, y, a and b lies on 16 bytes, but for those that begin inside an octet
// of ranks.
bool vectors(const LoraDelta& op) {
  const auto octets = [](int64_t a, int64_t b, int64_t c) {
    return a % kOctet == 0 && b % kOctet == 0 && c % kOctet == 0;
  };
  return octets(op.K, op.N, op.a.row_stride) && octets(op.b.row_stride, 0, 0) &&
         octets(op.x_row_stride, op.x_token_stride, 0) &&
         octets(op.y_row_stride, op.y_token_stride, 0) && op.a.col_stride == 1 &&
         op.b.col_stride == 1 && aligned(op.x, 16) && aligned(op.y, 16) && aligned(op.a.data, 16) &&
         aligned(op.b.data, 16);
}

// Tiles of ranks to keep: enough for any row where that is cheap, else for rows of twice the usual.
int kept_groups(const RowTable& table, int64_t shared_bytes) {
  const int64_t all = ceil_div(table.total_rank / kOctet + table.slot_count, 4);
  const int64_t usual = ceil_div(all * ceil_div(table.entries, table.rows), table.slot_count);
  const int64_t wanted = std::min(all, std::max<int64_t>(kCheapGroups, 2 * usual));
  const int64_t room = std::min<int64_t>(kMaxGroups, shared_bytes / kGroupBytes);
  return int(std::max<int64_t>(1, std::min(wanted, room)));
}

}  // namespace

void lora_delta(const LoraDelta& op, const Stream& stream) {
  const RowTable& table = op.table;
  if (table.rows * op.tokens * op.N == 0 || table.entries * table.slot_count == 0) return;
  const DeviceLimits& limits = device_limits(stream.device);
  Params params{op, ceil_div(op.tokens, kDeltaWarps * kTokens), 0, 0};
  params.groups = kept_groups(table, limits.shared_bytes);
  // Few tokens: blocks share the columns. Each shrinks for itself; that changes no sum.
  const int64_t blocks = table.rows * params.blocks_per_row;
  const int64_t shares = std::max<int64_t>(1, 2 * limits.processors / blocks);
  params.columns = kColumns * ceil_div(op.N, kColumns * std::min(shares, ceil_div(op.N, kColumns)));
  const dim3 grid(unsigned(blocks), unsigned(ceil_div(op.N, params.columns)));
  with_type(op.dtype, [&](auto element) {
    using T = decltype(element);
    const auto kernel = vectors(op) ? lora_delta_kernel<T, true> : lora_delta_kernel<T, false>;
    launch("lora_delta_", kernel, grid, kDeltaThreads, params.groups * kGroupBytes, stream, params);
  });
}

}  // namespace cmlora::cuda
