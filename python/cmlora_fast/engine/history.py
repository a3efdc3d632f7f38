"""The last two x₀ of what is forecast, and the line through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.tensors import plain_tensors, upload
from .levels import Level

__all__ = ["RULES", "Cell", "History"]


@dataclass(frozen=True)
class Rule:
    """How a line is followed.

    Args:
        time: What x₀ is a line in.
        farthest: How far it is followed, in steps from the last point but one to the last.
    """

    time: Callable[[Level], float]
    farthest: float


# As measured on the embedded testbed, see docs/caches.md.
RULES = {
    "forecast": Rule(lambda level: level.log_snr, 0.5),
    "relay": Rule(lambda level: level.sigma, 1.0),
}

Cell = tuple[int, int]  # line and sample
ALIKE = 1e-9  # points of one time are no line


class History:
    """The last two x₀ of every sample of every line, and how noisy they were.

    Args:
        lines: Predictions that a sample has.
        sample: (batch, C, H, W), as they are.
    """

    def __init__(self, lines: int, sample: Tensor):
        self.shape = lines, *sample.shape
        with plain_tensors():
            self._points = torch.zeros((2, *self.shape), device=sample.device)
        self._times: dict[Cell, tuple[float, ...]] = {}

    def knows(self, cell: Cell) -> bool:
        return len(self._times.get(cell, ())) == 2

    @property
    def complete(self) -> bool:
        """Whether every sample of every line is known."""
        lines, batch = self.shape[:2]
        return sum(map(self.knows, self._times)) == lines * batch

    def take(self, cells: Sequence[Cell], clean: Tensor, time: float) -> None:
        """``clean`` (cells, C, H, W) is what these have come to."""
        last, before = self._points
        line, first = cells[0]
        if list(cells) == [(line, first + n) for n in range(len(cells))]:
            place: Any = line, slice(first, first + len(cells))
        else:
            lines, samples = upload([*zip(*cells, strict=True)], torch.int64, clean.device)
            place = lines, samples
        before[place] = last[place]
        last[place] = clean.detach()
        for cell in cells:
            self._times[cell] = (time, *self._times.get(cell, ()))[:2]

    def reach(self, cell: Cell, time: float, farthest: float) -> float:
        """How far ``time`` lies beyond the last point, in steps from the one before to it."""
        last, before = self._times[cell]
        if abs(last - before) < ALIKE:
            return 0.0
        return min(farthest, max(0.0, (time - last) / (last - before)))

    def blend(self, share: Tensor, reach: Tensor) -> Tensor:
        """Σ_j share_j (last_j + reach_j (last_j - before_j)): (batch, C, H, W).

        Args:
            share: (lines, batch) or (lines, batch, H, W).
            reach: (lines, batch).
        """
        reach = reach.view(*reach.shape, *[1] * (share.dim() - 2))
        weights = torch.cat([share * (1 + reach), -share * reach])
        points = self._points.flatten(0, 1)
        out = torch.empty_like(points[:1])
        ops.combine_(out, points[None], weights.contiguous())
        return out[0]
