"""Adapters of the text encoders: what is active while a prompt is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .structure import Structure
from .watch import tuner_layers

__all__ = ["TextAdapters"]

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class TextAdapters:
    """The layers that PEFT put into a pipeline's text encoders, found anew where those change."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[nn.Module, Structure, list[BaseTunerLayer]]] = {}

    def layers(self, pipe: Any) -> list[BaseTunerLayer]:
        """Of all text encoders that the pipeline has by now; the others are let go of."""
        return [layer for component in TEXT_ENCODERS for layer in self._layers_of(pipe, component)]

    def active(self, pipe: Any) -> set[str]:
        """Names of the adapters that are active in a text encoder."""
        return {name for layer in self.layers(pipe) for name in layer.active_adapters}

    @contextmanager
    def only(
        self, pipe: Any, names: Sequence[str] | None, factors: Mapping[str, float] | None = None
    ) -> Iterator[None]:
        """Encode with just ``names`` active in every text encoder; None leaves them as they are.

        ``factors`` multiplies adapters' scales meanwhile. Only the list of active names and the
        scales are exchanged: ``set_adapter`` would touch requires_grad too.
        """
        layers = [] if names is None else self.layers(pipe)
        before = [(layer._active_adapter, dict(layer.scaling)) for layer in layers]
        try:
            for layer in layers:
                layer._active_adapter = list(names)
                for name, factor in (factors or {}).items():
                    if name in layer.scaling:
                        layer.scaling[name] *= factor
            yield
        finally:
            for layer, (active, scaling) in zip(layers, before, strict=True):
                layer._active_adapter = active
                layer.scaling.update(scaling)

    def encode_apart(
        self, pipe: Any, encode: Callable[[], Any], names: Sequence[tuple[str, ...]]
    ) -> Any:
        """A prompt encoded under each distinct set in ``names``; every image has its own rows.

        Raises:
            ValueError: The embeddings are not those of ``len(names)`` images.
        """
        made = {}
        for members in dict.fromkeys(names if self.layers(pipe) else names[:1]):
            with self.only(pipe, members):
                made[members] = encode()
        first = made[names[0]]
        if len(made) == 1:
            return first
        if isinstance(first, Tensor):
            return _of_images(made, names)
        parts = zip(*made.values(), strict=True)
        return type(first)(_of_images(dict(zip(made, part, strict=True)), names) for part in parts)

    def _layers_of(self, pipe: Any, component: str) -> list[BaseTunerLayer]:
        model = getattr(pipe, component, None)
        seen = self._seen.pop(component, None)
        if model is None:
            return []
        if seen is None or seen[0] is not model or not seen[1].same():
            structure = Structure(model)
            seen = model, structure, tuner_layers(structure)
        self._seen[component] = seen
        return seen[2]


def _of_images(made: dict[tuple[str, ...], Any], names: Sequence[tuple[str, ...]]) -> Any:
    """Embeddings (parts * images, ...) of which each image has those of its own adapters."""
    first, count = made[names[0]], len(names)
    if not isinstance(first, Tensor):
        return first
    if len(first) % count:
        raise ValueError(
            f"adapter_names: expected an entry for each of the call's {len(first)} images; "
            f"got {count}"
        )
    rows = zip(names * (len(first) // count), range(len(first)), strict=True)
    return torch.stack([made[members][row] for members, row in rows])
