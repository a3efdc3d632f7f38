"""Layers that run through PEFT's own forward, one subset after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..hooks import Hook, runs_as_peft_left_it
from .contents import is_normed
from .folded import widened
from .peft import AdaptedLayer

__all__ = ["PeftLayer", "runs_through_peft"]


def runs_through_peft(layer: AdaptedLayer) -> bool:
    """Whether others have a hand in the layer, or its factors are no plain numbers at hand.

    Of a base that is none, quantised say, the module is called in any case.
    """
    factors = (t for a in layer.adapters.values() for t in a.tensors.values())
    weight = getattr(layer.base, "weight", None)
    gone = isinstance(weight, Tensor) and weight.is_meta
    return gone or not all(map(is_normed, factors)) or not runs_as_peft_left_it(layer.module)


class PeftLayer:
    """What PEFT computes, hooks and all, with the adapters of a row's subset active."""

    apart = False
    bytes = 0
    memory: tuple[Tensor, ...] = ()

    def __init__(self, layer: AdaptedLayer, subsets: Sequence[tuple[str, ...]], scale: float):
        self.layer, self.scale = layer, scale
        self.subsets = [tuple(k for k in subset if k in layer.adapters) for subset in subsets]

    def __call__(self, x: Tensor, rows) -> Tensor:
        x = widened(x, rows)
        pieces = [self._run(x[start:stop], subset) for subset, start, stop in rows.segments]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _run(self, x: Tensor, subset: int) -> Tensor:
        members = self.subsets[subset]
        if not members:
            return self.layer.base(x)
        forward = self.layer.module.forward
        with self._active(members):
            return (forward.original if isinstance(forward, Hook) else forward)(x)

    @contextmanager
    def _active(self, members: tuple[str, ...]) -> Iterator[None]:
        """PEFT's own fields: its methods would touch ``requires_grad`` too."""
        module: nn.Module = self.layer.module
        before = module._active_adapter, module.scaling
        mine = {k: self.layer.adapters[k].scaling * self.scale for k in members}
        module._active_adapter, module.scaling = list(members), {**before[1], **mine}
        try:
            yield
        finally:
            module._active_adapter, module.scaling = before
