"""Adapters of the text encoders: what is active while a prompt is encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

__all__ = ["only_adapters"]

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


def _text_layers(pipe: Any) -> Iterator[BaseTunerLayer]:
    for component in TEXT_ENCODERS:
        model = getattr(pipe, component, None)
        for module in model.modules() if model is not None else ():
            if isinstance(module, BaseTunerLayer):
                yield module
