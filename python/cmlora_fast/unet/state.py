"""What hooked layers read: the current rows, their weights, text keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..adapters import FoldedLayer, WideLayer
from ..hooks import is_heard
from ..ops.products import conv2d, is_pointwise
from ..ops.tensors import is_dense
from .arranged import Arranged
from .joins import Joins, base_of
from .kit import CPU, Kit
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
        kit: How the layers' faster forms run on the device.
        forms: Modules that run in such a form.
        arranged: Base weights as the device reads them.
        joins: Products that run as one; None: none do.
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
    kit: Kit = CPU
    forms: Mapping[nn.Module, Callable] = field(default_factory=dict)
    arranged: Arranged = field(default_factory=Arranged)
    joins: Joins | None = None
    text_memory: dict[tuple[nn.Module, torch.Size], Tensor] | None = None
    _apart: dict[nn.Module, bool] = field(default_factory=dict)

    def runs(self, module: nn.Module) -> bool:
        """Whether the module runs in a form of ours."""
        return module in self.forms

    def weight(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """The base weight, for an input ``x``."""
        packed = not is_dense(layer.weight)
        if self.joins is None or packed or is_pointwise(layer) or not self.kit.takes(x):
            return layer.weight
        return self.arranged.channels_last(layer)

    def unbiased(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A convolution of ``x``, and its bias if that is still to be added."""
        base, rows = base_of(layer), self.rows
        known = type(base) is nn.Conv2d and (layer in self.hooked or layer in self.forms)
        if self.joins is None or not known or is_heard(layer):
            return layer(x), None
        weights = self.weights.get(self.hooked.get(layer))
        if isinstance(weights, WideLayer):
            return layer(x), None
        if isinstance(weights, FoldedLayer):
            return weights(x, rows.of_samples(len(x)), biased=False), base.bias
        y = conv2d(x, self.weight(base, x), base, biased=False)
        return y if weights is None else weights.beside(y, x, rows.of_samples(len(x))), base.bias

    def heard(self, *modules: nn.Module) -> bool:
        """Whether somebody's hook sees their calls."""
        return any(map(is_heard, modules))

    def room(self, layer: nn.Module) -> int:
        """Columns that the layer's adapters want behind its input's own; see ``WideLayer``."""
        weights = self.weights.get(self.hooked.get(layer))
        wide = isinstance(weights, WideLayer) and self.joins is not None
        return weights.room if wide and not is_heard(layer) else 0

    def joined_room(self, module: Attention) -> int:
        """The same of queries, keys and values that are one product."""
        return 0 if self.joins is None else self.joins.room(module)

    def time_shift(self, resnet: ResnetBlock2D, embedding: Tensor, biased: bool) -> Tensor:
        """(rows or 1, C): as ``Joins.shift``."""
        shift = None if self.joins is None else self.joins.shift(resnet, embedding, biased)
        if shift is not None:
            return shift
        shift = resnet.time_emb_proj(resnet.nonlinearity(embedding))
        return shift + base_of(resnet.conv1).bias if biased else shift

    def joined_product(self, module: Attention, x: Tensor) -> Sequence[Tensor] | None:
        """As ``Joins.product``."""
        return None if self.joins is None else self.joins.product(module, x, self.rows)

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

    def use(
        self,
        weights: Mapping[str, Callable[[Tensor, Rows], Tensor]],
        joined: Mapping[tuple[str, ...], Callable[[Tensor, Rows], Tensor]] | None = None,
    ) -> None:
        """Let the hooked layers run with these weights, and joined ones with those."""
        self.weights = weights
        self._apart.clear()
        self.arranged.refresh()
        if self.joins is not None:
            self.joins.begin(weights, joined or {})
            self._arrange()

    def begin_again(self) -> None:
        """A run begins with the weights of the last one."""
        self.arranged.refresh()
        if self.joins is not None:
            self.joins.forget()

    def _arrange(self) -> None:
        """Base weights that a run will ask for: replays read their addresses."""
        own = {base_of(layer) for layer, name in self.hooked.items() if name in self.weights}
        for layer in self.forms:
            plain = type(layer) is nn.Conv2d and is_dense(layer.weight)
            if plain and layer not in own and not is_pointwise(layer):
                self.arranged.channels_last(layer)

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
