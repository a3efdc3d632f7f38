"""Cases of the ops that apply or fold low-rank adapters."""

from functools import partial

import torch
from torch import Tensor

from ..workloads import ADAPTERS, LAYERS, QUICK_RANKS, RANKS, TINY_ROWS, Cases, OpCases, row_table


def lora_delta_cases(dtype: torch.dtype, size: str) -> Cases:
    if size == "tiny":
        for tokens, K, N in ((13, 37, 41), (70, 40, 136)):
            name = f"mixed rows, {tokens} x {K} to {N}"
            yield name, partial(lora_inputs, TINY_ROWS, tokens, K, N, [4, 16, 33], dtype)
        return
    for name, shape in LAYERS.items():
        for rank in QUICK_RANKS if size == "quick" else RANKS:
            yield f"{name}, rank {rank}", partial(lora_inputs, [[0]], *shape, [rank], dtype)
    for count in ADAPTERS:
        ranks, own = [16] * count, [[slot] for slot in range(count)]
        on_all = [list(range(count))]
        for name, tokens, K, N in (
            ("32x32", 1024, 640, 640),
            ("text keys", 77, 768, 320),
        ):
            each = partial(lora_inputs, own, tokens, K, N, ranks, dtype)
            yield f"{name}, {count} rows with their own of rank 16", each
        every = partial(lora_inputs, on_all, 2048, 640, 640, ranks, dtype)
        yield f"32x32, {count} of rank 16 on every row", every


def lora_inputs(rows, tokens, K, N, ranks, dtype) -> tuple[Tensor, ...]:
    """y, x, a, b and the table."""
    y, x = torch.randn(len(rows), tokens, N), torch.randn(len(rows), tokens, K)
    a, b = torch.randn(sum(ranks), K) / K**0.5, torch.randn(N, sum(ranks))
    return *(tensor.to(dtype) for tensor in (y, x, a, b)), *row_table(ranks, rows)


def lora_delta_flops(y, x, a, b, *table) -> int:
    return 2 * x.shape[1] * _ranks(*table) * (a.shape[1] + b.shape[0])


def _ranks(slots, row_ptr, row_slot, row_scale) -> int:
    """Of all entries of a table."""
    return sum((slots[1:] - slots[:-1])[row_slot.long()].tolist())


def lora_fold_cases(dtype: torch.dtype, size: str) -> Cases:
    if size == "tiny":
        for N, K in ((41, 37), (130, 72)):
            yield f"mixed rows, {N}x{K}", partial(fold_inputs, TINY_ROWS, K, N, [4, 16, 33], dtype)
        return
    widths = (
        ((320, 320), (1280, 1280)) if size == "quick" else ((320, 320), (640, 640), (1280, 1280))
    )
    for K, N in (*widths, (1280, 10240)):
        for ranks, rows in (
            ([16], [[0]]),
            ([16] * 5, [[0, 1, 2, 3, 4]]),
            ([64] * 3, [[0], [1], [2]]),
        ):
            name = f"{N}x{K}, {len(rows)} rows of {len(rows[0])} x rank {ranks[0]}"
            yield name, partial(fold_inputs, rows, K, N, ranks, dtype)


def fold_inputs(rows, K, N, ranks, dtype) -> tuple[Tensor, ...]:
    """w, a, b and the table."""
    w, a, b = torch.randn(N, K), torch.randn(sum(ranks), K) / K**0.5, torch.randn(N, sum(ranks))
    return *(tensor.to(dtype) for tensor in (w, a, b)), *row_table(ranks, rows)


def scale_ranks_cases(dtype: torch.dtype, size: str) -> Cases:
    full = ((10, 4096, 160), (2, 4096, 160), (2, 1024, 160), (10, 1024, 640))
    for rows, tokens, R in ((3, 5, 16), (2, 3, 11)) if size == "tiny" else full:

        def make(rows=rows, tokens=tokens, R=R) -> tuple:
            scales = torch.randn(rows, R) * (torch.rand(rows, R) > 0.5)
            return torch.randn(rows, tokens, R).to(dtype), scales

        yield f"{rows} x {tokens}, ranks {R}", make


CASES = {
    "scale_ranks_": OpCases(scale_ranks_cases, ("cuda",), lambda h, scales: 2 * h.nbytes),
    "lora_delta_": OpCases(
        lora_delta_cases,
        ("cpu", "triton"),
        lambda y, x, a, b, *table: 2 * y.nbytes + x.nbytes + a.nbytes + b.nbytes,
        lora_delta_flops,
    ),
    "lora_fold": OpCases(
        lora_fold_cases,
        ("cpu", "cuda"),
        lambda w, a, b, *table: table[1].numel() * w.nbytes + a.nbytes + b.nbytes,
        lambda w, a, b, *table: 2 * _ranks(*table) * w.numel(),
    ),
}
