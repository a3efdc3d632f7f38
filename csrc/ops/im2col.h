#pragma once

#include <cstdint>

namespace cmlora {

// columns[b, i, j, c, p, q] = image[b, i · stride + p - pad, j · stride + q - pad, c], 0 outside;
// and its transpose, which sums every column into the pixel that it came from.
struct Im2col {
  float* image;    // [B, H, W, C], contiguous
  float* columns;  // [B, rows, cols, C, kh, kw], contiguous
  int64_t B, H, W, C;
  int64_t kh, kw;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t rows, cols;  // of places where the kernel stands
};

namespace cpu {
void im2col(const Im2col& op);
void col2im(const Im2col& op);
}  // namespace cpu

}  // namespace cmlora
