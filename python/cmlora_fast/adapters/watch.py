"""What PEFT loaded into a model, read anew where anything of it has changed, and kept where not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .contents import Contents, is_normed
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
        self._dropouts: list[nn.Dropout] = []
        self._owns: list[dict[str, Any]] = []
        self._marked: tuple | None = None
        self._adapters: LoadedAdapters | None = None
        self._for: tuple[Structure, list[list[Any]]] | None = None
        self._contents: Contents | None = None

    def structure(self) -> Structure:
        """The modules of the model by now."""
        if self._structure is None or not self._structure.same():
            self._structure = Structure(self._model)
            self._layers = tuner_layers(self._structure)
            self._dropouts = [m for m in self._structure.modules if isinstance(m, nn.Dropout)]
        return self._structure

    def mark(self) -> None:
        """Remember what says which adapters are active, see ``moved``."""
        self._owns = [*map(vars, self._layers)]
        self._marked = self._pulse()

    def moved(self) -> bool:
        """Whether adapters were switched, weighted, loaded or fused since ``mark``.

        Asked at every step: some five passes over the layers' dictionaries, no line of Python each.
        """
        return self._pulse() != self._marked

    def _pulse(self) -> tuple:
        owns = self._owns
        told = [[*map(itemgetter(name), owns)] for name in ("_disable_adapters", "_active_adapter")]
        scaling = chain.from_iterable(map(dict.values, map(itemgetter("scaling"), owns)))
        merged = sum(map(len, map(itemgetter("merged_adapters"), owns)))
        return *told, [*scaling], merged, len(getattr(self._model, "peft_config", ()))

    def adapters(self) -> LoadedAdapters:
        """As ``read_adapters``, and raises as it does."""
        structure = self.structure()
        now = structure, [*_state(self._layers), [dropout.p for dropout in self._dropouts]]
        if self._for != now or self._contents is None or not self._contents.same():
            self._for = self._contents = self._adapters = None  # none of it if reading fails
            self._adapters = read_adapters(self._model)
            self._contents = _contents(self._adapters)
            self._for = now
        return self._adapters


def tuner_layers(structure: Structure) -> list[BaseTunerLayer]:
    """The layers that PEFT put into a model."""
    return [module for module in structure.modules if isinstance(module, BaseTunerLayer)]


def _state(layers: Sequence[BaseTunerLayer]) -> list[list[Any]]:
    """All of PEFT's layers that says what they compute, beside their modules and numbers.

    Flat lists, as few objects as can be: more of them wake Python's garbage collector.
    """
    owns = [*map(vars, layers)]
    told = [[own.get(name) for own in owns] for name in ("_disable_adapters", "training")]
    active = [own.get("_active_adapter") for own in owns]
    told.append([a if isinstance(a, str) else tuple(a or ()) for a in active])
    told.append([len(own.get("merged_adapters") or ()) for own in owns])
    named = [own.get(name) or {} for name in NAMED for own in owns]
    told += [*map(len, named)], [*chain.from_iterable(named)]
    told.append([*chain.from_iterable(map(dict.values, named))])
    return told


def _contents(adapters: LoadedAdapters) -> Contents | None:
    """None where nothing tells of a weight: made anew at every use (parametrised), or elsewhere."""
    layers = [layer for layer in adapters.layers if layer.adapters]
    if any("weight" not in vars(layer.base)["_parameters"] for layer in layers):
        return None
    exact = [t for layer in layers for a in layer.adapters.values() for t in a.tensors.values()]
    if not all(map(is_normed, exact)):
        return None  # offloaded or packed: nothing is kept of them
    return Contents(exact, [layer.base.weight for layer in layers])
