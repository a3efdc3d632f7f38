"""y[r] += Σ_k scale_k · (x[r] A_kᵀ) B_kᵀ over the adapters k of row r"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rank_lanes import block_of_ranks, rank_lanes, total_rank
from .tuning import config_of


@triton.jit
def shrink(
    x_ptr,  # [tokens, K] of this row
    a_ptr,  # [ΣR, K]
    token,
    rank,
    scale,
    tokens,
    K,
    x_token_stride,
    a_row_stride,
    a_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """scale · x Aᵀ [BLOCK_M, BLOCK_R] in float32."""
    hidden = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        x_mask = (token[:, None] < tokens) & (k[None, :] < K)
        a_mask = (rank[:, None] >= 0) & (k[None, :] < K)
        x = tl.load(x_ptr + token[:, None] * x_token_stride + k[None, :], mask=x_mask, other=0.0)
        a_at = rank[:, None].to(tl.int64) * a_row_stride + k[None, :] * a_col_stride
        a = tl.load(a_ptr + a_at, mask=a_mask, other=0.0)
        hidden += tl.dot(x, tl.trans(a), input_precision=PRECISION)
    return hidden * scale[None, :]


@triton.jit
def expand(
    hidden,  # [BLOCK_M, BLOCK_R] float32
    b_ptr,  # [N, ΣR]
    n,
    rank,
    N,
    b_row_stride,
    b_col_stride,
    PRECISION: tl.constexpr,
):
    """hidden Bᵀ [BLOCK_M, BLOCK_N] in float32."""
    mask = (n[:, None] < N) & (rank[None, :] >= 0)
    b_at = n[:, None].to(tl.int64) * b_row_stride + rank[None, :] * b_col_stride
    b = tl.trans(tl.load(b_ptr + b_at, mask=mask, other=0.0))
    # Half-precision operands: the part of `hidden` that rounding drops is multiplied as well.
    high = hidden.to(b.dtype)
    result = tl.dot(high, b, input_precision=PRECISION)
    if b.dtype != tl.float32:
        low = (hidden - high.to(tl.float32)).to(b.dtype)
        result += tl.dot(low, b, input_precision=PRECISION)
    return result


@triton.jit
def _lora_delta_kernel(
    y_ptr,  # [rows, tokens, N]
    x_ptr,  # [rows, tokens, K]
    a_ptr,  # [ΣR, K]
    b_ptr,  # [N, ΣR]
    slots_ptr,  # [S + 1]
    row_ptr_ptr,  # [rows + 1]
    row_slot_ptr,  # [nnz]
    row_scale_ptr,  # [nnz]
    tokens,
    K,
    N,
    y_row_stride,
    y_token_stride,
    x_row_stride,
    x_token_stride,
    a_row_stride,
    a_col_stride,
    b_row_stride,
    b_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(1)
    start, end = tl.load(row_ptr_ptr + row), tl.load(row_ptr_ptr + row + 1)
    total = total_rank(slots_ptr, row_slot_ptr, start, end)
    if total == 0:
        return  # the base row keeps its bits
    x_ptr += row.to(tl.int64) * x_row_stride
    y_ptr += row.to(tl.int64) * y_row_stride
    token = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    rank, scale = rank_lanes(slots_ptr, row_slot_ptr, row_scale_ptr, start, end, 0, BLOCK_R)
    hidden = shrink(
        x_ptr, a_ptr, token, rank, scale, tokens, K, x_token_stride, a_row_stride, a_col_stride,
        BLOCK_M, BLOCK_K, BLOCK_R, PRECISION,
    )  # fmt: skip
    for first_n in range(0, N, BLOCK_N):
        n = first_n + tl.arange(0, BLOCK_N)
        delta = expand(hidden, b_ptr, n, rank, N, b_row_stride, b_col_stride, PRECISION)
        # Ranks past the first BLOCK_R are shrunk again for every block of columns: rare, and the
        # alternative is a workspace or a second rounding of y.
        for first in range(BLOCK_R, total, BLOCK_R):
            more, factor = rank_lanes(
                slots_ptr, row_slot_ptr, row_scale_ptr, start, end, first, BLOCK_R
            )
            extra = shrink(
                x_ptr, a_ptr, token, more, factor, tokens, K, x_token_stride, a_row_stride,
                a_col_stride, BLOCK_M, BLOCK_K, BLOCK_R, PRECISION,
            )  # fmt: skip
            delta += expand(extra, b_ptr, n, more, N, b_row_stride, b_col_stride, PRECISION)
        y_at = y_ptr + token[:, None] * y_token_stride + n[None, :]
        mask = (token[:, None] < tokens) & (n[None, :] < N)
        y = tl.load(y_at, mask=mask, other=0.0).to(tl.float32) + delta
        tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=mask)


def lora_delta_(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> None:
    rows, tokens, K = x.shape
    if not y.numel():
        return
    BLOCK_R = block_of_ranks(a, slots, row_ptr, row_slot)
    config = config_of("lora_delta_", x, N=y.shape[2], rank=BLOCK_R)
    _lora_delta_kernel[(triton.cdiv(tokens, config["BLOCK_M"]), rows)](
        y, x, a, b, slots, row_ptr, row_slot, row_scale, tokens, K, y.shape[2],
        *y.stride()[:2], *x.stride()[:2], *a.stride(), *b.stride(),
        BLOCK_R=BLOCK_R, PRECISION=precision_of(x), **config,
    )  # fmt: skip


def precision_of(x: Tensor) -> str:
    # Three products of 19-bit floats come within float32's rounding, on tensor cores.
    return "tf32x3" if x.dtype == torch.float32 else "ieee"
