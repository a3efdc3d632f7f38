"""Hooked layers: the current rows, their weights, and text keys and values made once per image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..adapters import AdaptedLayer
from .cpu_layers import fast_modules
from .patches import Patches
from .rows import Rows, pick
from .tap import TapProcessor

__all__ = ["LayerHooks", "LayerState"]


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
    text_memory: dict[tuple[nn.Module, torch.Size], Tensor] | None = None
    _apart: dict[nn.Module, bool] = field(default_factory=dict)

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

    def use(self, weights: Mapping[str, Callable[[Tensor, Rows], Tensor]]) -> None:
        """Let the hooked layers run with these weights."""
        self.weights = weights
        self._apart.clear()

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


class LayerHooks:
    """Routes adapted layers, and the text keys and values of cross-attention, through a state."""

    def __init__(self, state: LayerState):
        self._state = state
        self._patches = Patches()
        self._hooked: tuple[torch.device, list[nn.Module]] | None = None
        self._text: tuple[nn.Module, ...] = ()

    def attach(self, unet: nn.Module, layers: tuple[AdaptedLayer, ...]) -> None:
        """Hook ``unet`` as it is; nothing to do if its layers are those hooked before."""
        adapted = {layer.module for layer in layers}
        text = _text_modules(unet)
        modules = [layer.module for layer in layers] + [m for m in text if m not in adapted]
        device = unet.device  # diffusers walks over all modules to tell
        if (device, modules) == self._hooked:
            return
        self.detach()
        for module, fast in list(fast_modules(unet, self._state)) if device.type == "cpu" else ():
            self._patches.set(module, "forward", _in_a_run(module.forward, fast, self._state))
        self._state.hooked = dict.fromkeys(text) | {layer.module: layer.name for layer in layers}
        for module, name in self._state.hooked.items():
            hook = _hook(module, name, module in text, self._state)
            self._patches.set(module, "forward", hook)
        self._hooked, self._text = (device, modules), tuple(text)

    def make_text(self) -> None:
        """All keys and values at once: a replayed step runs none of the code that makes them."""
        state = self._state
        state.rows = state.all_rows
        for module in self._text:
            module(state.rows.text_tokens)
        state.rows = None

    def detach(self) -> None:
        """Leave every layer as it was found."""
        self._patches.restore()
        self._text = ()
        self._hooked = None


def _text_modules(unet: nn.Module) -> dict[nn.Module, None]:
    """The key and value projections of cross-attention, in order."""
    found = {}
    for module in unet.modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            found |= {m: None for m in (module.to_k, module.to_v) if m is not None}
    return found


def _in_a_run(
    own: Callable[..., Any], fast: Callable[..., Any], state: LayerState
) -> Callable[..., Any]:
    """``fast`` while rows run, else ``own``."""

    @functools.wraps(own)
    def forward(*args, **kwargs):
        return (own if state.rows is None else fast)(*args, **kwargs)

    return forward


def _hook(
    module: nn.Module, name: str | None, reads_text: bool, state: LayerState
) -> Callable[..., Tensor]:
    original = module.forward

    def compute(x: Tensor, rows: Rows) -> Tensor:
        if name is None:
            return original(x)
        weights = state.weights.get(name)
        return module.base_layer(x) if weights is None else weights(x, rows.of_samples(len(x)))

    @functools.wraps(original)
    def forward(*args, **kwargs):
        rows = state.rows
        if rows is None or len(args) != 1 or kwargs:
            return original(*args, **kwargs)
        x = args[0]
        if reads_text and x is rows.text_tokens and state.keeps_text():
            return _text(module, compute, rows, state)
        return compute(x, rows)

    return forward


def _text(module: nn.Module, compute, rows: Rows, state: LayerState) -> Tensor:
    """Keys or values of ``rows``, made once per image for every subset."""
    everyone = state.all_rows
    made = state.text.get(module)
    if made is None:
        with torch.no_grad():
            made = state.keep_text(module, compute(everyone.text_tokens, everyone))
    return made if rows is everyone else pick(made, rows.text_rows)
