#pragma once

#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "ops/row_table.h"

namespace cmlora::cpu {

// One adapter of a row, packed to float32. W is the vector width.
struct Segment {
  const float* shrink;  // A in panels of W ranks, see pack_kernels.h
  const float* expand;  // the other factor as [ceil(columns / 2W), rank, 2W], missing columns zero
  int64_t first;        // first rank in the slabs
  int64_t rank;
  float scale;
};

// Consecutive tokens of one row: y += Σ scale · (x Aᵀ) Bᵀ.
struct DeltaBlock {
  const void* x;
  void* y;
  int64_t x_stride;
  int64_t y_stride;
  int64_t tokens;
  int64_t K;
  int64_t N;
  const Segment* segments;
  int64_t segment_count;
  int64_t padded_rank;  // sum of the ranks, each rounded up to W
  float* scratch;       // delta_scratch(padded_rank) floats
};

// Consecutive output features of one folded weight: out = w + Σ scale · B A.
struct FoldBlock {
  const void* w;
  void* out;
  int64_t w_stride;
  int64_t out_stride;
  Matrix b;       // first of the features
  int64_t count;  // features
  int64_t K;
  const Segment* segments;
  int64_t segment_count;
  float* scratch;  // delta_scratch(padded_rank) floats
};

// count contiguous elements of out = Σ_j weights[j] · noise[0][j], guided with noise[1] too.
struct CombineRun {
  void* out;
  const void* const* noise;  // [J], guided [2, J]
  const float* weights;      // [J], per pixel [J, count], weight_stride apart
  int64_t weight_stride;
  int64_t J;
  int64_t count;
  bool per_pixel;
  bool guided;
  float guidance_scale;
};

// Queries of one row and head: out = softmax(scale · q kᵀ) v, the scale for exponentials of base 2.
struct AttentionBlock {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  float* lse;  // [queries] log of the softmax's sums, to base e, or null
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  int64_t out_stride;
  int64_t queries;  // attention_queries at most
  int64_t keys;
  int64_t D;
  float scale;
  float* scratch;  // attention_scratch(D) floats
};

// Slopes of one row and head.
struct AttentionBackwardBlock {
  void* dq;
  void* dk;  // null, as dv, where none is wanted
  void* dv;
  const void* dout;
  const void* out;
  const void* q;
  const void* k;
  const void* v;
  const float* lse;  // [queries]
  int64_t width;     // stride of the tokens of out and of every slope
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  int64_t queries;
  int64_t keys;
  int64_t D;
  float scale;
  float* scratch;  // attention_backward_scratch(queries, D) floats
};

// count contiguous elements of out = x · gelu(gate).
struct GegluRun {
  void* out;
  const void* x;
  const void* gate;
  int64_t count;
};

// The same of d x = d out · gelu(gate) and d gate = d out · x · gelu'(gate).
struct GegluBackwardRun {
  void* dx;
  void* dgate;
  const void* dout;
  const void* x;
  const void* gate;
  int64_t count;
};

// Tokens whose channels' means and squares are taken at once, at most.
constexpr int64_t kMomentTokens = 32;

// Mean and sum of squared differences over `tokens` tokens of each of C channels.
struct MomentsRun {
  const void* x;
  int64_t stride;  // of tokens
  int64_t tokens;
  int64_t C;
  float* mean;
  float* squares;
};

// out[t] = silu?(x[t] · scale + offset) for `tokens` tokens of C channels.
struct NormalizeRun {
  void* out;  // contiguous
  const void* x;
  int64_t stride;  // of the tokens of x
  int64_t tokens;
  int64_t C;
  const float* scale;
  const float* offset;
  bool silu;
};

struct SpectrumPlan;

// One image: latents [C, H, W] to a profile of plan.bins values and the mean of its high band.
struct SpectrumImage {
  const void* latents;
  int64_t C;
  int64_t c_stride;
  int64_t h_stride;
  int64_t first_bin;
  bool log;
  float* mean;
  float* profile;
  const SpectrumPlan* plan;
  double* scratch;  // plan.scratch_size doubles
};

// The kernels of one instruction set; arrays are indexed by DType.
struct Kernels {
  const char* name;
  int64_t width;
  int64_t tile;  // tokens that one register tile holds
  int64_t attention_queries;
  int64_t (*delta_scratch)(int64_t padded_rank);
  int64_t (*attention_scratch)(int64_t D);
  int64_t (*attention_backward_scratch)(int64_t queries, int64_t D);
  int64_t (*shrink_panel)(int64_t K);
  void (*pack_shrink[kDTypes])(const Matrix& a, int64_t ranks, int64_t K, float* out);
  void (*pack_expand[kDTypes])(const Matrix& m, int64_t rank, int64_t columns, float* out);
  void (*lora_delta[kDTypes])(const DeltaBlock& block);
  void (*lora_fold[kDTypes])(const FoldBlock& block);
  void (*attention[kDTypes])(const AttentionBlock& block);
  void (*attention_backward[kDTypes])(const AttentionBackwardBlock& block);
  void (*geglu[kDTypes])(const GegluRun& run);
  void (*geglu_backward[kDTypes])(const GegluBackwardRun& run);
  void (*moments[kDTypes])(const MomentsRun& run);
  void (*normalize[kDTypes])(const NormalizeRun& run);
  void (*combine[kDTypes])(const CombineRun& run);
  void (*radial_amplitude[kDTypes])(const SpectrumImage& image);
};

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
