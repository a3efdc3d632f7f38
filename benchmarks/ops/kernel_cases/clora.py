"""Cases of CLoRA's ops."""

from functools import partial

import torch

from ..workloads import Cases, OpCases


def attention_tap_cases(dtype: torch.dtype, size: str) -> Cases:
    tiny = ((2, 20, 77, 2, 40, [1, 5, 76]), (3, 9, 33, 3, 7, [32, 0]))
    usual = [(6, 256, 77, 8, 160, [2, 3, 5, 6])]  # CLoRA with two concepts, SD 1.5 at 16x16
    for rows, queries, keys, heads, D, columns in tiny if size == "tiny" else usual:
        name = f"{rows} x {queries} x {keys}, {heads} heads of {D}"
        yield name, partial(tap_inputs, rows, queries, keys, heads, D, columns, dtype)


def tap_inputs(rows, queries, keys, heads, D, columns, dtype) -> tuple:
    """q, k, tracked keys and the number of heads."""
    q, k = (torch.randn(rows, n, heads * D).to(dtype) for n in (queries, keys))
    return q, k, torch.tensor(columns, dtype=torch.int32), heads


def contrastive_loss_cases(dtype: torch.dtype, size: str) -> Cases:
    for S, B, r, q in ((7, 2, 5, 13), (4, 1, 16, 16)):
        yield f"{S} maps of {B} x {r} x {q}", partial(loss_inputs, S, B, r, q)


def loss_inputs(S, B, r, q) -> tuple:
    """Maps in float32 whatever the model's type, and index and concept of those in the loss."""
    tables = [*range(S), 0], [j % 2 for j in range(S + 1)]
    return torch.rand(S, B, r, q), *(torch.tensor(t, dtype=torch.int32) for t in tables)


CASES = {
    "attention_tap": OpCases(
        attention_tap_cases,
        ("cuda",),
        lambda q, k, columns, heads: (
            q.nbytes + k.nbytes + 4 * q.shape[0] * q.shape[1] * columns.numel()
        ),
    ),
    "contrastive_loss": OpCases(
        contrastive_loss_cases, ("cuda",), lambda maps, *tables: 2 * maps.nbytes
    ),
}
