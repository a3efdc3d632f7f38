"""Adapters of the text encoders: what is active while a prompt is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

__all__ = ["active_in_text", "encode_apart", "only_adapters"]

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@contextmanager
def only_adapters(
    pipe: Any, names: Sequence[str] | None, factors: Mapping[str, float] | None = None
) -> Iterator[None]:
    """Encode with just ``names`` active in every text encoder; None leaves them as they are.

    ``factors`` multiplies adapters' scales meanwhile. Only the list of active names and the scales
    are exchanged: ``set_adapter`` would touch requires_grad too.
    """
    layers = [] if names is None else list(_text_layers(pipe))
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


def encode_apart(pipe: Any, encode: Callable[[], Any], names: Sequence[tuple[str, ...]]) -> Any:
    """A prompt encoded under each distinct set in ``names``; every image has the rows of its own.

    Raises:
        ValueError: The embeddings are not those of ``len(names)`` images.
    """
    made = {}
    adapted = next(_text_layers(pipe), None) is not None
    for members in dict.fromkeys(names if adapted else names[:1]):
        with only_adapters(pipe, members):
            made[members] = encode()
    first = made[names[0]]
    if len(made) == 1:
        return first
    if isinstance(first, Tensor):
        return _of_images(made, names)
    parts = zip(*made.values(), strict=True)
    return type(first)(_of_images(dict(zip(made, part, strict=True)), names) for part in parts)


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


def active_in_text(pipe: Any) -> set[str]:
    """Names of the adapters that are active in a text encoder."""
    return {name for layer in _text_layers(pipe) for name in layer.active_adapters}


def _text_layers(pipe: Any) -> Iterator[BaseTunerLayer]:
    for component in TEXT_ENCODERS:
        model = getattr(pipe, component, None)
        for module in model.modules() if model is not None else ():
            if isinstance(module, BaseTunerLayer):
                yield module
