#include "ops/im2col.h"

#include <cstddef>
#include <vector>

#include "cpu/parallel.h"

namespace cmlora::cpu {

namespace {

bool inside(int64_t at, int64_t size) { return at >= 0 && at < size; }

// Channel by channel the values of all taps; kTaps 0 for any number of them.
template <int kTaps>
void interleave(const float* const* from, int64_t taps, int64_t C, float* to) {
  const int64_t count = kTaps > 0 ? kTaps : taps;  // known: the inner loop is unrolled
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t tap = 0; tap < count; ++tap) *to++ = from[tap][c];
  }
}

}  // namespace

void im2col(const Im2col& op) {
  const int64_t taps = op.kh * op.kw;
  const std::vector<float> outside(size_t(op.C), 0.0f);
  parallel_for(op.B * op.rows * op.cols, grain_for(op.C * taps), [&](int64_t begin, int64_t end) {
    std::vector<const float*> from(static_cast<size_t>(taps));
    for (int64_t place = begin; place < end; ++place) {
      const int64_t b = place / (op.rows * op.cols);
      const int64_t top = place / op.cols % op.rows * op.stride_h - op.pad_h;
      const int64_t left = place % op.cols * op.stride_w - op.pad_w;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t h = top + tap / op.kw, w = left + tap % op.kw;
        const bool there = inside(h, op.H) && inside(w, op.W);
        from[size_t(tap)] = there ? op.image + ((b * op.H + h) * op.W + w) * op.C : outside.data();
      }
      const auto run = taps == 9 ? interleave<9> : interleave<0>;
      run(from.data(), taps, op.C, op.columns + place * op.C * taps);
    }
  });
}

void col2im(const Im2col& op) {
  const int64_t taps = op.kh * op.kw;
  parallel_for(op.B * op.H * op.W, grain_for(op.C * taps), [&](int64_t begin, int64_t end) {
    std::vector<const float*> from;
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t b = pixel / (op.H * op.W);
      from.clear();
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t h = pixel / op.W % op.H + op.pad_h - tap / op.kw;
        const int64_t w = pixel % op.W + op.pad_w - tap % op.kw;
        const int64_t i = h / op.stride_h, j = w / op.stride_w;
        const bool stood = h >= 0 && w >= 0 && h % op.stride_h == 0 && w % op.stride_w == 0;
        if (stood && i < op.rows && j < op.cols) {
          const int64_t place = (b * op.rows + i) * op.cols + j;
          from.push_back(op.columns + place * op.C * taps + tap);
        }
      }
      float* to = op.image + pixel * op.C;
      for (int64_t c = 0; c < op.C; ++c) {
        float sum = 0.0f;
        for (const float* column : from) sum += column[c * taps];
        to[c] = sum;
      }
    }
  });
}

}  // namespace cmlora::cpu
