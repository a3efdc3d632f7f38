"""cache[rows[i]] = fresh[i]"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
BUILDS = [{"BLOCK": BLOCK}]  # all constants of a launch


@triton.jit
def _cache_refresh_kernel(
    cache_ptr,  # [S, C, H, W]
    fresh_ptr,  # [R, C, H, W]
    rows_ptr,  # [R]
    C,
    H,
    W,
    cache_s_stride,
    cache_c_stride,
    cache_h_stride,
    fresh_r_stride,
    fresh_c_stride,
    fresh_h_stride,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(1)
    row = tl.load(rows_ptr + index)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c, h, w = element // (H * W), element // W % H, element % W
    mask = element < C * H * W
    c = c.to(tl.int64)
    fresh_at = index.to(tl.int64) * fresh_r_stride + c * fresh_c_stride + h * fresh_h_stride + w
    cache_at = row.to(tl.int64) * cache_s_stride + c * cache_c_stride + h * cache_h_stride + w
    tl.store(cache_ptr + cache_at, tl.load(fresh_ptr + fresh_at, mask=mask), mask=mask)


def cache_refresh_(cache: Tensor, fresh: Tensor, rows: Tensor) -> None:
    R, C, H, W = fresh.shape
    if not fresh.numel():
        return
    _cache_refresh_kernel[(triton.cdiv(C * H * W, BLOCK), R)](
        cache, fresh, rows, C, H, W, *cache.stride()[:3], *fresh.stride()[:3], BLOCK
    )
