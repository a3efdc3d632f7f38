"""Hooks of adapted layers, and of the text keys and values that are made once per image."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..adapters import AdaptedLayer
from ..hooks import Hook, Patches
from .fast_layers import fast_modules
from .joins import Joins
from .kit import CPU, kit_of
from .rows import Rows, pick
from .state import LayerState

__all__ = ["LayerHooks"]


class LayerHooks:
    """Routes adapted layers, and the text keys and values of cross-attention, through a state."""

    def __init__(self, state: LayerState):
        self._state = state
        self._patches = Patches()
        self._hooked: tuple | None = None
        self._text: tuple[nn.Module, ...] = ()

    def attach(
        self,
        unet: nn.Module,
        layers: tuple[AdaptedLayer, ...],
        device: torch.device,
        seen: Hashable,
        whole: bool,
    ) -> None:
        """Hook ``unet`` as it is; nothing to do if it is what it was when it was hooked before.

        Args:
            unet: The UNet.
            layers: Those that adapters touch.
            device: Where it computes.
            seen: Equal while its modules are the same.
            whole: It runs as a whole, by diffusers' own forwards and whatever is on them.
        """
        adapted = {layer.module for layer in layers}
        text = _text_modules(unet)
        modules = [layer.module for layer in layers] + [m for m in text if m not in adapted]
        now = device, modules, seen, whole
        if now == self._hooked:
            return
        self.detach()
        kit = None if whole else kit_of(device)
        self._state.forms = dict(fast_modules(unet, self._state)) if kit else {}
        for module, fast in self._state.forms.items():
            self._patches.set(module, "forward", _in_a_run(module.forward, fast, self._state))
        self._state.hooked = dict.fromkeys(text) | {layer.module: layer.name for layer in layers}
        for module, name in self._state.hooked.items():
            hook = _hook(module, name, module in text, self._state)
            self._patches.set(module, "forward", hook)
        joins = kit is not None and kit.joins
        self._state.kit = kit or CPU
        self._state.joins = Joins(unet, self._names(), self._state.arranged) if joins else None
        self._hooked, self._text = now, tuple(text)

    def _names(self) -> dict[nn.Module, str]:
        """Adapted layers."""
        return {module: name for module, name in self._state.hooked.items() if name is not None}

    @property
    def joins(self) -> list[tuple[str, ...]]:
        """Names of adapted layers that may share one product."""
        return [] if self._state.joins is None else self._state.joins.names

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
        self._state.forms, self._state.joins = {}, None
        self._state.arranged.clear()
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

    def forward(*args, **kwargs):
        return (own if state.rows is None else fast)(*args, **kwargs)

    return Hook.over(own, forward)


def _hook(
    module: nn.Module, name: str | None, reads_text: bool, state: LayerState
) -> Callable[..., Tensor]:
    original = module.forward

    def compute(x: Tensor, rows: Rows) -> Tensor:
        if name is None:
            return original(x)
        weights = state.weights.get(name)
        return module.base_layer(x) if weights is None else weights(x, rows.of_samples(x.shape[0]))

    def forward(*args, **kwargs):
        rows = state.rows
        if rows is None or len(args) != 1 or kwargs:
            return original(*args, **kwargs)
        x = args[0]
        if reads_text and x is rows.text_tokens and state.keeps_text():
            return _text(module, compute, rows, state)
        return compute(x, rows)

    return Hook.over(original, forward)


def _text(module: nn.Module, compute, rows: Rows, state: LayerState) -> Tensor:
    """Keys or values of ``rows``, made once per image for every subset."""
    everyone = state.all_rows
    made = state.text.get(module)
    if made is None:
        with torch.no_grad():
            made = state.keep_text(module, compute(everyone.text_tokens, everyone))
    return made if rows is everyone else pick(made, rows.text_rows)
