"""Inputs and judgement shared by the tests of the ops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from cmlora_fast import _C
from cmlora_fast.ops import reference
from torch import Tensor


@dataclass
class RowTable:
    """Adapters of each row as lists, e.g. ``[[(0, 0.5)], [], [(2, 1.0), (0, -1.0)]]``."""

    ranks: Sequence[int]
    rows: Sequence[Sequence[tuple[int, float]]]

    @property
    def total_rank(self) -> int:
        return sum(self.ranks)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """slots, row_ptr, row_slot, row_scale."""
        entries = [entry for row in self.rows for entry in row]
        return (
            offsets(self.ranks),
            offsets([len(row) for row in self.rows]),
            torch.tensor([slot for slot, _ in entries], dtype=torch.int32),
            torch.tensor([scale for _, scale in entries], dtype=torch.float32),
        )


def offsets(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)


# Which adapters the rows take; LoRA batches differ in nothing as much as in this.
MIXES = {
    "one": RowTable([8], [[(0, 1.0)]]),
    "plain": RowTable([4, 16, 33], [[(0, 0.8), (1, 1.0), (2, -0.5)]] * 2),  # all on every row
    "each its own": RowTable([16, 4, 40, 1], [[(j, 0.7)] for j in range(4)]),  # Composite
    "base row": RowTable([8, 8], [[], [(0, 1.0)], [(1, 0.0)]]),  # no adapter, scale 0
    "rank 0": RowTable([0, 5, 0], [[(0, 1.0)], [(0, 1.0), (1, 2.0), (2, 1.0)]]),
    "repeated": RowTable([6, 130], [[(1, 0.5), (1, 0.25), (0, 1.0)], [(1, 0.5)]]),
    "no entries": RowTable([4], [[], []]),
    "no rows": RowTable([4], []),
}


def row_weights(shape: Sequence[int], per_pixel: bool) -> Tensor:
    """Weights of the rows of predictions [G, J, B, C, H, W]: of any sign, per pixel those of masks.

    Some pixels nobody claims.
    """
    _, J, B, _, H, W = shape
    if not per_pixel:
        return torch.randn(J, B)
    masks = (torch.rand(J, B, H, W) > 0.5).float()
    masks[:, :, 0, 0], masks[:1, :, -1, -1] = 0, 0.3
    return reference.mask_shares(masks) if J else masks


FEW = 64  # values; the errors of fewer say little about another computation's


def assert_as_good(ours: Tensor, twin: Tensor, exact: Tensor, terms: Tensor | None = None) -> None:
    """The error of ours against float64 is at most twice the twin's, plus rounding.

    That holds for the root of the mean square; the largest error, which chance doubles, may be
    four times the twin's. Rounding is that of the result's dtype at the size of the values, as in
    flash-attention. For few values it is also float32's at the size of ``terms``, the sums of
    absolute values.
    """
    assert ours.shape == exact.shape and ours.dtype == twin.dtype
    assert torch.equal(ours.isnan(), twin.isnan())
    finite = exact.isfinite()
    if not finite.any():
        return
    error, twin_error = ((t.double() - exact)[finite] for t in (ours, twin))
    rounding = 2 * torch.finfo(ours.dtype).eps
    few = 0.0
    if terms is not None and exact.numel() < FEW:
        few = 2 * torch.finfo(torch.float32).eps * terms.max()
    for size, times in ((_root_mean_square, 2), (_largest, 4)):
        limit = times * size(twin_error) + rounding * size(exact[finite]) + few
        assert size(error) <= limit, (size.__name__, size(error).item(), limit.item())


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _largest(values: Tensor) -> Tensor:
    return values.abs().max()


def written(op: Callable) -> list[bool]:
    """Which of an op's arguments it writes to."""
    return [a.alias_info is not None for a in op.op._opoverload._schema.arguments]


def with_serial_pool(call):
    """The result of ``call()`` on one thread, without a pool."""
    pool = _C.current_pool()
    _C.use_pool(_C.Pool.serial)
    try:
        return call()
    finally:
        _C.use_pool(pool)


def lora_inputs(mix: RowTable, shape: Sequence[int], dtype: torch.dtype = torch.float32):
    """y, x, a, b and the tables of a mix; ``shape``: tokens, K, N."""
    tokens, K, N = shape
    rows, total = len(mix.rows), mix.total_rank
    y, x = torch.randn(rows, tokens, N), torch.randn(rows, tokens, K)
    a, b = torch.randn(total, K) / K**0.5, torch.randn(N, total)
    return *(tensor.to(dtype) for tensor in (y, x, a, b)), *mix.tensors()
