"""Adapters of the text encoders: what is active while a prompt is encoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

__all__ = ["only_adapter"]

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@contextmanager
def only_adapter(pipe: Any, name: str | None) -> Iterator[None]:
    """Encode with ``name`` alone active in every text encoder; None leaves them as they are.

    Only the list of active names is exchanged: ``set_adapter`` would touch requires_grad too.
    """
    layers = [] if name is None else list(_text_layers(pipe))
    before = [layer._active_adapter for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [name]
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def _text_layers(pipe: Any) -> Iterator[BaseTunerLayer]:
    for component in TEXT_ENCODERS:
        model = getattr(pipe, component, None)
        for module in model.modules() if model is not None else ():
            if isinstance(module, BaseTunerLayer):
                yield module
