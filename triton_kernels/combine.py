"""out[g] = Σ_j weights[j] · noise[g, j], guided: out = out₀ + s · (out₁ - out₀)"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
BUILDS = [  # all constants of a launch
    {"PER_PIXEL": per_pixel, "GUIDED": guided, "BLOCK": BLOCK}
    for per_pixel in (False, True)
    for guided in (False, True)
]


@triton.jit
def _weighted_sum(noise, j_stride, weights, w_stride, mask, J, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(J):
        value = tl.load(noise + j * j_stride, mask=mask, other=0.0).to(tl.float32)
        total += tl.load(weights + j * w_stride, mask=mask, other=0.0) * value
    return total


@triton.jit
def _combine_kernel(
    out_ptr,  # [G, B, C, H, W], guided [B, C, H, W]
    noise_ptr,  # [G, J, B, C, H, W]
    weights_ptr,  # [J, B], per pixel [J, B, H, W]
    guidance_scale,
    J,
    B,
    C,
    H,
    W,
    out_g_stride,
    out_b_stride,
    out_c_stride,
    out_h_stride,
    noise_g_stride,
    noise_j_stride,
    noise_b_stride,
    noise_c_stride,
    noise_h_stride,
    PER_PIXEL: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b, g = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c, h, w = (element // (H * W)).to(tl.int64), element // W % H, element % W
    mask = element < C * H * W
    at = g * noise_g_stride + b * noise_b_stride + c * noise_c_stride + h * noise_h_stride + w
    pixels = H * W if PER_PIXEL else 1
    weights = weights_ptr + b * pixels + element % pixels
    noise, w_stride = noise_ptr + at, B * pixels
    total = _weighted_sum(noise, noise_j_stride, weights, w_stride, mask, J, BLOCK)
    if GUIDED:
        noise += noise_g_stride
        other = _weighted_sum(noise, noise_j_stride, weights, w_stride, mask, J, BLOCK)
        total += guidance_scale * (other - total)
    out_at = g * out_g_stride + b * out_b_stride + c * out_c_stride + h * out_h_stride + w
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=mask)


def combine_(
    out: Tensor, noise: Tensor, weights: Tensor, guidance_scale: float | None = None
) -> None:
    G, J, B, C, H, W = noise.shape
    if not out.numel():
        return
    guided = guidance_scale is not None
    out_strides = (0, *out.stride()[:3]) if guided else out.stride()[:4]
    _combine_kernel[(triton.cdiv(C * H * W, BLOCK), B, 1 if guided else G)](
        out, noise, weights, guidance_scale if guided else 0.0, J, B, C, H, W,
        *out_strides, *noise.stride()[:5], weights.dim() == 4, guided, BLOCK,
    )  # fmt: skip
