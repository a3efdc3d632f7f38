"""y[r] = x[r] Wᵀ + bias + Σ_k scale_k · (x[r] A_kᵀ) B_kᵀ over the adapters k of row r

The ranks ride along in the K loop of the base product, and are expanded into its accumulator: y is
written once and nothing else is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lora_delta import expand, precision_of, shrink
from .rank_lanes import block_of_ranks, rank_lanes, total_rank
from .tuning import config_of


@triton.jit
def _tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Tiles in groups of GROUP_M rows of tiles, so that neighbours share weights in L2."""
    per_group = GROUP_M * tiles_n
    first = pid // per_group * GROUP_M
    size = tl.minimum(tiles_m - first, GROUP_M)
    return first + pid % per_group % size, pid % per_group // size


@triton.jit
def _lora_linear_kernel(
    y_ptr,  # [rows, tokens, N], contiguous
    x_ptr,  # [rows, tokens, K]
    w_ptr,  # [N, K]
    bias_ptr,  # [N]
    a_ptr,  # [ΣR, K]
    b_ptr,  # [N, ΣR]
    slots_ptr,  # [S + 1]
    row_ptr_ptr,  # [rows + 1]
    row_slot_ptr,  # [nnz]
    row_scale_ptr,  # [nnz]
    tokens,
    K,
    N,
    x_row_stride,
    x_token_stride,
    w_row_stride,
    a_row_stride,
    a_col_stride,
    b_row_stride,
    b_col_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(1)
    tile_m, tile_n = _tile_of(
        tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M
    )
    start, end = tl.load(row_ptr_ptr + row), tl.load(row_ptr_ptr + row + 1)
    total = total_rank(slots_ptr, row_slot_ptr, start, end)
    rank, scale = rank_lanes(slots_ptr, row_slot_ptr, row_scale_ptr, start, end, 0, BLOCK_R)
    x_ptr += row.to(tl.int64) * x_row_stride
    token = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    n_at = n.to(tl.int64)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    hidden = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = k[None, :] < K
        x_at = x_ptr + token[:, None] * x_token_stride + k[None, :]
        x = tl.load(x_at, mask=inside & (token[:, None] < tokens), other=0.0)
        w_at = w_ptr + n_at[:, None] * w_row_stride + k[None, :]
        w = tl.load(w_at, mask=inside & (n[:, None] < N), other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        # Rows without adapters load nothing here; leaving the product out would end the pipeline.
        a_at = rank[:, None].to(tl.int64) * a_row_stride + k[None, :] * a_col_stride
        a = tl.load(a_ptr + a_at, mask=inside & (rank[:, None] >= 0), other=0.0)
        hidden = tl.dot(x, tl.trans(a), hidden, input_precision=PRECISION)
    if total > 0:
        scaled = hidden * scale[None, :]
        acc += expand(scaled, b_ptr, n, rank, N, b_row_stride, b_col_stride, PRECISION)
        for first in range(BLOCK_R, total, BLOCK_R):
            more, factor = rank_lanes(
                slots_ptr, row_slot_ptr, row_scale_ptr, start, end, first, BLOCK_R
            )
            extra = shrink(
                x_ptr, a_ptr, token, more, factor, tokens, K, x_token_stride, a_row_stride,
                a_col_stride, BLOCK_M, BLOCK_K, BLOCK_R, PRECISION,
            )  # fmt: skip
            acc += expand(extra, b_ptr, n, more, N, b_row_stride, b_col_stride, PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + (row.to(tl.int64) * tokens + token[:, None]) * N + n[None, :]
    mask = (token[:, None] < tokens) & (n[None, :] < N)
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=mask)


def lora_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> Tensor:
    (rows, tokens, K), N = x.shape, w.shape[0]
    y = torch.empty(rows, tokens, N, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    BLOCK_R = block_of_ranks(a, slots, row_ptr, row_slot)
    config = config_of("lora_linear", x, N=N, rank=BLOCK_R)
    tiles = triton.cdiv(tokens, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"])
    _lora_linear_kernel[(tiles, rows)](
        y, x, w, w if bias is None else bias, a, b, slots, row_ptr, row_slot, row_scale, tokens, K,
        N, *x.stride()[:2], w.stride(0), *a.stride(), *b.stride(), bias is not None,
        BLOCK_R=BLOCK_R, PRECISION=precision_of(x), **config,
    )  # fmt: skip
    return y
