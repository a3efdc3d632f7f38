"""Adapters as part of their base's own product: y = [x | h] [W | B]ᵀ with h = scale · x Aᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.products import is_pointwise
from .folded import widened
from .peft import AdaptedLayer
from .slab import Slab, pack

__all__ = ["WideLayer", "is_wide"]

# Columns come in eights: 16 bytes of 16-bit numbers, below which cuBLAS has slow kernels alone.
COLUMNS = 8


def is_wide(layer: AdaptedLayer) -> bool:
    """Whether the layer can run so: a product with a weight as it is, factors of the same kind."""
    base, weight = layer.base, getattr(layer.base, "weight", None)
    product = type(base) is nn.Linear or (type(base) is nn.Conv2d and is_pointwise(base))
    if not product or type(weight) not in (nn.Parameter, Tensor):
        return False
    kinds = {t.dtype for a in layer.adapters.values() for t in (a.a, a.b)} | {weight.dtype}
    return weight.is_floating_point() and len(kinds) == 1


class WideLayer:
    """Layers of one input that run as one product for rows of any subsets, with one weight.

    The weight is [W | B₁ … B_S]: K + ``room`` columns, of several layers one below the other. A
    row's input carries h in its last ``room`` columns, 0 in those of adapters that are not its own;
    whoever makes the input leaves them free. For inputs without them it is two products.
    """

    def __init__(
        self, layers: Sequence[AdaptedLayer], subsets: Sequence[tuple[str, ...]], scale: float
    ):
        slabs = [pack(layer, subsets, scale) for layer in layers]
        weights = [layer.base.weight.detach().flatten(1) for layer in layers]
        ranks = sum(len(slab.a) for slab in slabs)
        self.base = layers[0].base
        self.room = -(-ranks // COLUMNS) * COLUMNS
        self.K = weights[0].shape[1]
        self.weight = weights[0].new_zeros(sum(map(len, weights)), self.K + self.room)
        self.a = weights[0].new_zeros(self.room, self.K)
        scales = torch.zeros(len(subsets), self.room, device=self.a.device)
        self._fill(weights, slabs, scales)
        self.bias = _bias(layers)
        # Where all rows are alike, their scales are those of A.
        self._scales = None if len(subsets) == 1 else scales
        if self._scales is None:
            self.a.copy_(self.a * scales[0][:, None])
        self._tables: dict[tuple, Tensor] = {}

    def _fill(self, weights: Sequence[Tensor], slabs: Sequence[Slab], scales: Tensor) -> None:
        row, column = 0, self.K
        for weight, slab in zip(weights, slabs, strict=True):
            rows, columns = slice(row, row + len(weight)), slice(column, column + len(slab.a))
            self.weight[rows, : self.K] = weight
            self.weight[rows, columns] = slab.b
            ranks = slice(columns.start - self.K, columns.stop - self.K)
            self.a[ranks] = slab.a
            scales[:, ranks] = slab.rank_scales
            row, column = rows.stop, columns.stop

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What a replayed step reads, but for tables that it made itself."""
        return tuple(t for t in (self.weight, self.a, self.bias, self._scales) if t is not None)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.memory)

    def __call__(self, x: Tensor, rows) -> Tensor:
        """x: (rows, tokens, K), (rows, K) or (rows, K, H, W) -> the layers' outputs.

        Or (rows, tokens, K + room), whose last columns are written to.
        """
        x = widened(x, rows)
        if x.dim() == 4:
            return self._product(x.permute(0, 2, 3, 1), rows).permute(0, 3, 1, 2)
        return self._product(x, rows)

    def _product(self, x: Tensor, rows) -> Tensor:
        """x: (rows, ..., K or K + room)"""
        if not self._is_plain(x):
            return self._in_steps(x, rows)
        x = x.contiguous()
        flat = x.view(-1, x.shape[-1])
        if x.shape[-1] == self.K + self.room:
            torch.mm(flat[:, : self.K], self.a.mT, out=flat[:, self.K :])
            self._scale(flat[:, self.K :], rows)
            return F.linear(x, self.weight, self.bias)
        hidden = torch.mm(flat, self.a.mT)
        self._scale(hidden, rows)
        y = F.linear(x, self.weight[:, : self.K], self.bias)
        y.view(-1, y.shape[-1]).addmm_(hidden, self.weight[:, self.K :].mT)
        return y

    def _is_plain(self, x: Tensor) -> bool:
        """Nothing casts, and nobody records a graph."""
        if x.dtype is not self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return False
        return not (torch.is_grad_enabled() and x.requires_grad)

    def _in_steps(self, x: Tensor, rows) -> Tensor:
        """As autocast and autograd want it."""
        hidden = F.linear(x, self.a.to(x.dtype))
        if self._scales is not None:
            scales = self._scales_of(rows).unflatten(0, (rows.count, *[1] * (x.dim() - 2)))
            hidden = (hidden * scales.to(hidden.dtype)).masked_fill(scales == 0, 0)
        base, up = (w.to(x.dtype) for w in self.weight.split([self.K, self.room], dim=1))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, base, bias) + F.linear(hidden, up)

    def _scale(self, hidden: Tensor, rows) -> None:
        """hidden: (tokens of all rows, room)"""
        if self._scales is not None:
            ops.scale_ranks_(hidden.unflatten(0, (rows.count, -1)), self._scales_of(rows))

    def _scales_of(self, rows) -> Tensor:
        """(rows, room)"""
        if rows.subset_of_row is not None:
            return self._scales.index_select(0, rows.subset_of_row)
        table = self._tables.get(rows.segments)
        if table is None:
            subsets = [s for s, start, stop in rows.segments for _ in range(start, stop)]
            index = torch.tensor(subsets, device=self._scales.device)
            table = self._tables[rows.segments] = self._scales.index_select(0, index)
        return table


def _bias(layers: Sequence[AdaptedLayer]) -> Tensor | None:
    biases = [layer.base.bias for layer in layers]
    if all(bias is None for bias in biases):
        return None
    if len(biases) == 1:
        return biases[0].detach()
    raise ValueError("layers with biases run each by itself")
