"""y[r] += h[r] B_kᵀ over the adapters k of row r, side by side in h as lora_shrink left them"""

import triton
import triton.language as tl
from torch import Tensor

from .lora_shrink import precision_of
from .tuning import config_of

MOST_LANES = 64  # of a pass, whose tiles of h and b share memory with those of other blocks


@triton.jit
def _load_h(h_ptr, token, lane, part_size, width, PARTS: tl.constexpr):
    h_at = h_ptr + token[:, None] * width + lane[None, :]
    h = tl.load(h_at)
    if PARTS > 1:
        for part in tl.static_range(1, PARTS):
            h += tl.load(h_at + part * part_size)
    return h


@triton.jit
def _load_b(b_ptr, rank, owned, n, R, N, b_row_stride, b_col_stride):
    b_at = n.to(tl.int64)[None, :] * b_row_stride + rank.to(tl.int64)[:, None] * b_col_stride
    exists = ((rank >= 0) & (rank < R))[:, None] & (n < N)[None, :]
    return tl.where(owned[:, None], tl.load(b_ptr + b_at, mask=exists, other=0.0), 0.0)


@triton.jit
def _lora_expand_kernel(
    y_ptr,  # [rows, tokens, N]
    h_ptr,  # [PARTS, rows, tokens, width], contiguous
    b_ptr,  # [N, ΣR]
    lanes_ptr,  # [rows, width + 1], contiguous
    tokens,
    N,
    R,
    width,
    y_row_stride,
    y_token_stride,
    b_row_stride,
    b_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(1)
    lanes_ptr += row.to(tl.int64) * (width + 1)
    total = tl.load(lanes_ptr + width)
    if total == 0:
        return  # the base row keeps its bits
    part_size = tl.num_programs(1).to(tl.int64) * tokens * width
    h_ptr += row.to(tl.int64) * tokens * width
    y_ptr += row.to(tl.int64) * y_row_stride
    tiles_n = tl.cdiv(N, BLOCK_N)  # neighbours share h
    token = (tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y_at = y_ptr + token[:, None] * y_token_stride + n[None, :]
    mask = (token[:, None] < tokens) & (n[None, :] < N)
    existing = tl.minimum(token, tokens - 1)
    acc = tl.load(y_at, mask=mask, other=0.0).to(tl.float32)
    first = 0
    while first < total:  # which is not pipelined, see lora_shrink
        lane = first + tl.arange(0, BLOCK_R)
        h = _load_h(h_ptr, existing, lane, part_size, width, PARTS)
        word = tl.load(lanes_ptr + lane)
        owned = word % 2 != 0
        rank = tl.multiple_of(tl.max_contiguous(word >> 1, 8), 8)  # for loads of 16 bytes
        b = _load_b(b_ptr, rank, owned, n, R, N, b_row_stride, b_col_stride)
        if b.dtype == tl.bfloat16:
            h = h.to(tl.bfloat16)
        else:
            b = b.to(tl.float32)  # 19-bit floats hold float16
        acc = tl.dot(h, b, acc, input_precision=PRECISION)
        first += BLOCK_R
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=mask)


def lora_expand(y: Tensor, h: Tensor, lanes: Tensor, b: Tensor, BLOCK_R: int) -> None:
    (parts, rows, tokens, width), N = h.shape, y.shape[2]
    BLOCK_R = min(BLOCK_R, MOST_LANES)  # a part of what lora_shrink wrote at once
    config = config_of("lora_expand", y, N, BLOCK_R)
    tiles = triton.cdiv(tokens, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"])
    _lora_expand_kernel[(tiles, rows)](
        y, h, b, lanes, tokens, N, b.shape[1], width, *y.stride()[:2], *b.stride(),
        BLOCK_R=BLOCK_R, PARTS=parts, PRECISION=precision_of(y), **config,
    )  # fmt: skip
