"""What PEFT loaded into a model, read anew where anything of it has changed, and kept where not."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .contents import Contents
from .peft import LoadedAdapters, read_adapters
from .structure import Structure

__all__ = ["Watch", "tuner_layers"]

NAMED = ("scaling", "use_dora", "lora_bias", "lora_variant")  # of a PEFT layer, by adapter


class Watch:
    """Keeps what was seen of ``model``: its modules, the state of its PEFT layers, their numbers.

    Asked again, it compares, and gives the same objects while all is the same: whatever was made
    of them holds. In a millionth of a second per module, and one wait for the device.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._structure: Structure | None = None
        self._layers: list[BaseTunerLayer] = []
        self._adapters: LoadedAdapters | None = None
        self._for: tuple[Structure, list[tuple]] | None = None
        self._contents: Contents | None = None

    def structure(self) -> Structure:
        """The modules of the model by now."""
        if self._structure is None or not self._structure.same():
            self._structure = Structure(self._model)
            self._layers = tuner_layers(self._structure)
        return self._structure

    def adapters(self) -> LoadedAdapters:
        """As ``read_adapters``, and raises as it does."""
        structure = self.structure()
        now = structure, [*map(_state, map(vars, self._layers))]
        if self._for != now or self._contents is None or not self._contents.same():
            self._for = self._contents = self._adapters = None  # none of it if reading fails
            self._adapters = read_adapters(self._model)
            self._contents = _contents(self._adapters)
            self._for = now
        return self._adapters


def tuner_layers(structure: Structure) -> list[BaseTunerLayer]:
    """The layers that PEFT put into a model."""
    return [module for module in structure.modules if isinstance(module, BaseTunerLayer)]


def _state(own: Mapping[str, Any]) -> tuple:
    """All of a PEFT layer that says what it computes, beside its modules and numbers."""
    named = (own.get(name) or {} for name in NAMED)
    dropout = ()
    if own["training"] and "lora_dropout" in own["_modules"]:
        dropout = tuple(getattr(m, "p", 0) for m in own["_modules"]["lora_dropout"].values())
    active = own.get("_active_adapter")
    return (
        own.get("_disable_adapters"),
        active if isinstance(active, str) else tuple(active or ()),
        tuple(own.get("merged_adapters") or ()),
        own["training"],
        dropout,
        *chain.from_iterable(map(dict.items, named)),
    )


def _contents(adapters: LoadedAdapters) -> Contents | None:
    """None where a weight is made anew at every use (parametrised): nothing tells of it."""
    layers = [layer for layer in adapters.layers if layer.adapters]
    if any("weight" not in vars(layer.base)["_parameters"] for layer in layers):
        return None
    exact = [t for layer in layers for a in layer.adapters.values() for t in (a.a, a.b)]
    return Contents(exact, [layer.base.weight for layer in layers])
