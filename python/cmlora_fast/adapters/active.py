"""One adapter more among the active ones: the others keep weights and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from .updates import Update

__all__ = ["Before", "activate", "keep", "put_back"]

PARTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Before:
    """The active adapters, and by component and PEFT layer: scalings, active names, gradients."""

    active: tuple[str, ...]
    loaded: bool
    layers: dict[tuple[str, str], dict[str, float]]


def keep(pipe: Any) -> Before:
    """What ``activate`` and ``put_back`` need to know."""
    layers = {key: dict(layer.scaling) for key, layer in _layers(pipe).items()}
    loaded = any(pipe.get_list_adapters().values())
    return Before(tuple(pipe.get_active_adapters()) if loaded else (), loaded, layers)


def activate(
    pipe: Any, before: Before, name: str, weight: float, updates: Sequence[Update]
) -> None:
    """Give each layer its own alpha, and the adapter its weight, last in the order."""
    alphas = {(u.component, u.name): u.alpha for u in updates}
    layers = _layers(pipe)
    for key, alpha in alphas.items():
        if name not in layers[key].scaling:
            raise ValueError(f"{'.'.join(key)}: it was not put into the model")
        layers[key].lora_alpha[name] = alpha
        layers[key].scaling[name] = alpha / layers[key].r[name]
    names = [*before.active, name]
    pipe.set_adapters(names, [1.0] * len(before.active) + [weight])
    _restore(pipe, before)


def put_back(pipe: Any, before: Before, name: str) -> None:
    """Take the adapter away again."""
    if not before.loaded:
        pipe.unload_lora_weights()
        return
    if any(name in names for names in pipe.get_list_adapters().values()):
        pipe.delete_adapters(name)
    _unwrap(pipe, before)
    if before.active:
        pipe.set_adapters(list(before.active))
    _restore(pipe, before)


def _unwrap(pipe: Any, before: Before) -> None:
    """Layers that nothing had been put into are plain ones again."""
    for (part, name), layer in _layers(pipe).items():
        if (part, name) not in before.layers:
            parent, _, own = name.rpartition(".")
            setattr(getattr(pipe, part).get_submodule(parent), own, layer.get_base_layer())


def _restore(pipe: Any, before: Before) -> None:
    layers = _layers(pipe)
    for key, scaling in before.layers.items():
        layers[key].scaling.update(scaling)


def _layers(pipe: Any) -> dict[tuple[str, str], Any]:
    return {
        (part, name): module
        for part in PARTS
        if getattr(pipe, part, None) is not None
        for name, module in getattr(pipe, part).named_modules()
        if isinstance(module, BaseTunerLayer) and hasattr(module, "scaling")
    }
