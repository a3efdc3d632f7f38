"""What hooked layers read: the current rows, their weights, text keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .rows import Rows
from .tap import TapProcessor

__all__ = ["LayerState"]


@dataclass
class LayerState:
    """Shared by all hooked layers of one UNet. ``rows`` None: every layer runs as PEFT left it.

    Args:
        rows: The rows of the batch that is running.
        weights: Layer name -> callable(x, rows).
        hooked: Hooked layer -> its name; None for text keys and values that no adapter touches.
        all_rows: One row per text of the run; text keys and values are made for these.
        text: Module -> keys or values of ``all_rows``.
        alike: To the module that runs next: rows that lie so far apart in one segment are the same
            until text is read.
        constant_text: No gradient is wanted of the text, so it may be kept while one is recorded.
        text_memory: Where keys and values of each shape lie in every run, for steps that are
            replayed; None: each run has its own.
    """

    rows: Rows | None = None
    weights: Mapping[str, Callable[[Tensor, Rows], Tensor]] = field(default_factory=dict)
    hooked: Mapping[nn.Module, str | None] = field(default_factory=dict)
    all_rows: Rows | None = None
    text: dict[nn.Module, Tensor] = field(default_factory=dict)
    alike: int | None = None
    constant_text: bool = False
    text_memory: dict[tuple[nn.Module, torch.Size], Tensor] | None = None
    _apart: dict[nn.Module, bool] = field(default_factory=dict)

    def take_alike(self) -> int | None:
        """``alike``, which says nothing of the modules that come after."""
        alike, self.alike = self.alike, None
        return alike

    def once(self, run: Callable[[Tensor], Tensor], x: Tensor, alike: int | None) -> Tensor:
        """``run(x)``, x (rows, ...), whose rows that are ``alike`` apart are the same."""
        rows = self.rows
        first = None if alike is None else rows.firsts(alike)
        if first is None:
            return run(x)
        self.rows = first
        try:
            out = run(torch.cat([x[start : start + alike] for _, start, _ in rows.segments]))
        finally:
            self.rows = rows
        pieces = zip(out.split(alike), rows.segments, strict=True)
        return torch.cat([piece for piece, (_, a, b) in pieces for _ in range(a, b, alike)])

    def keeps_text(self) -> bool:
        """Whether keys and values may be kept: not while a graph is recorded through them."""
        return self.all_rows is not None and (self.constant_text or not torch.is_grad_enabled())

    def use(self, weights: Mapping[str, Callable[[Tensor, Rows], Tensor]]) -> None:
        """Let the hooked layers run with these weights."""
        self.weights = weights
        self._apart.clear()

    def runs_apart(self, module: nn.Module) -> bool:
        """Whether no base layer in ``module`` runs twice when every subset runs by itself."""
        if module not in self._apart:
            self._apart[module] = self._is_apart(module)
        return self._apart[module]

    def _is_apart(self, module: nn.Module) -> bool:
        if module in self.hooked:
            name = self.hooked[module]
            return name is None or getattr(self.weights.get(name), "apart", False)
        if isinstance(module, nn.Linear | nn.Conv2d):
            return False
        if isinstance(getattr(module, "processor", None), TapProcessor):
            return False  # it sums maps over layers, all rows of a chunk at once
        return all(map(self._is_apart, module.children()))

    def drop_text(self) -> None:
        """Forget keys and values: the embeddings, the batch or the weights changed."""
        self.text.clear()
        self.all_rows = None

    def keep_text(self, module: nn.Module, made: Tensor) -> Tensor:
        """Keys or values of all rows, from now on."""
        if self.text_memory is not None:
            place = self.text_memory.setdefault((module, made.shape), made)
            made = place if place is made else place.copy_(made)
        self.text[module] = made
        return made
