"""h[r, t, lane] = scale · (x[r] A_kᵀ)[t, rank] over the adapters k of row r, side by side

And which rank each lane stands for, so that no tile of the expansion looks that up again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rank_lanes import TABLE, most_lanes, row_lanes
from .tuning import config_of


@triton.jit
def _product(
    x_ptr,  # [tokens, K] of this row
    a_ptr,  # [ΣR, K]
    rank,
    first_token,
    first_k,
    end_k,
    tokens,
    K,
    R,
    x_token_stride,
    a_row_stride,
    a_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x Aᵀ [BLOCK_M, BLOCK_R] in float32, over columns first_k to end_k."""
    # Tokens and ranks that do not exist load those that do: masks would cost more than the bytes.
    token = tl.minimum(first_token + tl.arange(0, BLOCK_M), tokens - 1).to(tl.int64)
    x_rows = x_ptr + token[:, None] * x_token_stride
    rank = tl.minimum(tl.maximum(rank, 0), R - 1).to(tl.int64)
    a_rows = a_ptr + rank[:, None] * a_row_stride
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for from_k in range(first_k, end_k, BLOCK_K):
        k = from_k + tl.arange(0, BLOCK_K)
        if EVEN_K:
            x = tl.load(x_rows + k[None, :])
            a = tl.load(a_rows + k[None, :] * a_col_stride)
        else:
            x = tl.load(x_rows + k[None, :], mask=k[None, :] < K, other=0.0)
            a = tl.load(a_rows + k[None, :] * a_col_stride, mask=k[None, :] < K, other=0.0)
        acc = tl.dot(x, tl.trans(a), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _lora_shrink_kernel(
    h_ptr,  # [SPLIT_K, rows, tokens, width], contiguous
    lanes_ptr,  # [rows, width + 1], contiguous
    x_ptr,  # [rows, tokens, K]
    a_ptr,  # [ΣR, K]
    slots_ptr,  # [S + 1]
    row_ptr_ptr,  # [rows + 1]
    row_slot_ptr,  # [nnz]
    row_scale_ptr,  # [nnz]
    S,
    tokens,
    K,
    R,
    width,
    x_row_stride,
    x_token_stride,
    a_row_stride,
    a_col_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, part = tl.program_id(1), tl.program_id(2)
    start, end = tl.load(row_ptr_ptr + row), tl.load(row_ptr_ptr + row + 1)
    lanes_ptr += row.to(tl.int64) * (width + 1)
    tells = (tl.program_id(0) == 0) & (part == 0)
    if start == end:
        if tells:
            tl.store(lanes_ptr + width, 0)
        return
    x_ptr += row.to(tl.int64) * x_row_stride
    h_ptr += (part * tl.num_programs(1) + row).to(tl.int64) * tokens * width
    first_token = tl.program_id(0) * BLOCK_M
    share = tl.cdiv(K, BLOCK_K * SPLIT_K) * BLOCK_K
    first_k = part * share
    end_k = tl.minimum(first_k + share, K)
    first = 0
    total = 1  # lanes of the row; known after the first pass
    while first < total:
        rank, owned, scale, total = row_lanes(
            slots_ptr, row_slot_ptr, row_scale_ptr, S, start, end, first, BLOCK_R, TABLE
        )
        lane = first + tl.arange(0, BLOCK_R)
        if tells:
            tl.store(lanes_ptr + lane, 2 * rank + owned)
        # Triton 3.6 may give the shared memory of a tile that was made before a pipelined loop to
        # that loop. So no tile but the accumulator, which is in registers, outlives the loop over
        # K: not to the next pass, nor to an expansion in this kernel.
        acc = _product(
            x_ptr, a_ptr, rank, first_token, first_k, end_k, tokens, K, R, x_token_stride,
            a_row_stride, a_col_stride, BLOCK_M, BLOCK_K, BLOCK_R, EVEN_K, PRECISION,
        )  # fmt: skip
        token = (first_token + tl.arange(0, BLOCK_M)).to(tl.int64)
        h_at = h_ptr + token[:, None] * width + (first + tl.arange(0, BLOCK_R))[None, :]
        h = tl.where(owned[None, :] > 0, acc * scale[None, :], 0.0)
        tl.store(h_at, h.to(h_ptr.dtype.element_ty), mask=token[:, None] < tokens)
        first += BLOCK_R
    if tells:
        tl.store(lanes_ptr + width, total)


def lora_shrink(
    x: Tensor,
    a: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
    BLOCK_R: int,
) -> tuple[Tensor, Tensor]:
    """h [parts, rows, tokens, width], summed over the parts, and lanes [rows, width + 1].

    A row's lanes: 2 · rank, and 1 more where the rank is of an adapter of the row, for each column
    of h; negative past the last; at the end the number of columns in use. The columns of no adapter
    of the row are 0, those not in use anything.
    """
    (rows, tokens, K), R, S = x.shape, a.shape[0], slots.numel() - 1
    config = config_of("lora_shrink", x, K, BLOCK_R)
    parts, width = config["SPLIT_K"], triton.cdiv(most_lanes(R, S), BLOCK_R) * BLOCK_R
    # bfloat16 has float32's range and keeps the digits of y; float16 would overflow.
    whole = x.dtype == torch.bfloat16 and parts == 1
    dtype = torch.bfloat16 if whole else torch.float32
    h = torch.empty(parts, rows, tokens, width, dtype=dtype, device=x.device)
    lanes = torch.empty(rows, width + 1, dtype=torch.int32, device=x.device)
    _lora_shrink_kernel[(triton.cdiv(tokens, config["BLOCK_M"]), rows, parts)](
        h, lanes, x, a, slots, row_ptr, row_slot, row_scale, S, tokens, K, R, width,
        *x.stride()[:2], *a.stride(), BLOCK_R=BLOCK_R, EVEN_K=K % config["BLOCK_K"] == 0,
        TABLE=TABLE, PRECISION=precision_of(x), **config,
    )  # fmt: skip
    return h, lanes


def precision_of(x: Tensor) -> str:
    """Of products in float32; three of 19-bit floats come within its rounding, on tensor cores."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"
