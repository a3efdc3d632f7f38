"""Base weights as a GPU's kernels read them: channels-last, or several layers' as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.tensors import plain_tensors

__all__ = ["Arranged"]

Key = tuple[tuple[nn.Module, ...], str]


class Arranged:
    """Copies of the engine's own, made when first asked for; the pipeline's tensors stay as they
    are.

    ``refresh`` writes all of them anew at the beginning of a run, in their place: what the copies
    cost, a millisecond for SD 1.5, is less than to find out whether a base weight was written to.
    """

    def __init__(self) -> None:
        self._copies: dict[Key, Tensor] = {}
        self._refused: set[Key] = set()

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """What a replayed step reads."""
        return tuple(self._copies.values())

    @property
    def bytes(self) -> int:
        return sum(copy.numel() * copy.element_size() for copy in self._copies.values())

    def channels_last(self, layer: nn.Conv2d) -> Tensor:
        """The weight [N, C, kh, kw] with its channels together."""
        weight, key = layer.weight, ((layer,), "weight")
        if weight.is_contiguous(memory_format=torch.channels_last) or key in self._refused:
            return weight
        try:
            return self._copy(key)
        except torch.OutOfMemoryError:  # cuDNN changes the layout at every call instead
            self._refused.add(key)
            return weight

    def joined(self, layers: tuple[nn.Module, ...], name: str = "weight") -> Tensor:
        """Weights or biases of layers, one after the other along their first dimension."""
        return self._copy((layers, name))

    def refresh(self) -> None:
        """Take over what the layers hold by now."""
        sources, targets = [], []
        for key, copy in list(self._copies.items()):
            pieces = _sources(key)
            if not _fits(copy, pieces):
                del self._copies[key]  # made anew when asked for
                continue
            sources += pieces
            targets += copy.split([len(piece) for piece in pieces])
        if targets:
            with plain_tensors():
                torch._foreach_copy_(targets, sources)

    def clear(self) -> None:
        """Drop every copy."""
        self._copies.clear()
        self._refused.clear()

    def _copy(self, key: Key) -> Tensor:
        made = self._copies.get(key)
        if made is None:
            with plain_tensors():
                pieces = _sources(key)
                made = pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces)
                if made.dim() == 4:
                    made = made.contiguous(memory_format=torch.channels_last)
            self._copies[key] = made
        return made


def _sources(key: Key) -> list[Tensor]:
    layers, name = key
    return [getattr(layer, name).detach() for layer in layers]


def _fits(copy: Tensor, pieces: list[Tensor]) -> bool:
    """Whether the pieces have the place, the dtype and the device that they had."""
    kinds = {(piece.dtype, piece.device, piece.shape[1:]) for piece in pieces}
    return kinds == {(copy.dtype, copy.device, copy.shape[1:])} and len(copy) == sum(
        map(len, pieces)
    )
