"""diffusers' layers by faster kernels: the same sums, to rounding.

What torch runs slowly: on a CPU in float32 matrix products, attention, the feed-forward's gate, and
changes of layout between images and tokens; on a GPU those changes, and everything between two
products. Images stay channels-last, so that tokens are a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .. import ops
from ..hooks import runs_own_forward
from ..ops.products import conv2d, linear
from . import kit
from .fast_blocks import BLOCKS, Forward
from .rooms import is_gated, is_plain
from .state import LayerState

__all__ = ["fast_modules"]


def fast_modules(unet: nn.Module, state: LayerState) -> Iterator[tuple[nn.Module, Forward]]:
    """Modules of ``unet`` that have a faster forward, and that forward."""
    forms = {**_LAYERS, **BLOCKS}
    for name, module in unet.named_modules():
        make = forms.get(type(module))
        # PEFT's factors run folded or in a slab; who replaced a forward wants it to be called.
        if make is not None and ".lora_" not in name and runs_own_forward(module):
            yield module, make(module, state)


def _linear(module: nn.Linear, state: LayerState) -> Forward:
    return lambda x: linear(x, module.weight, module.bias)


def _conv(module: nn.Conv2d, state: LayerState) -> Forward:
    own = module.forward
    if module.padding_mode != "zeros":
        return own
    return lambda x: conv2d(x, state.weight(module, x), module)


def _geglu(module: GEGLU, state: LayerState) -> Forward:
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not state.kit.takes(x):
            return own(x, *args, **kwargs)
        return ops.geglu(module.proj(x))

    return forward


def _feed_forward(module: FeedForward, state: LayerState) -> Forward:
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, gate = state.rows, module.net[0]
        given = args or kwargs or torch.is_grad_enabled()  # a graph keeps every piece
        if given or x.dim() != 3 or type(gate) is not GEGLU or not state.kit.takes(x):
            return own(x, *args, **kwargs)
        if not state.kit.host:
            return gated(x) if is_gated(module, state) else own(x)
        pieces = _pieces(*x.shape[:2], kit.LARGEST // (gate.proj.out_features * x.element_size()))
        if len(pieces) == 1:
            return own(x)
        out = torch.empty_like(x)
        try:
            for some, tokens in pieces:
                state.rows = rows.part(some.start, some.stop)
                out[some, tokens] = own(x[some, tokens])
        finally:
            state.rows = rows
        return out

    def gated(x: Tensor) -> Tensor:
        gate, _, last = module.net
        return last(ops.geglu(gate.proj(x), state.room(last)))

    return forward


def _pieces(rows: int, tokens: int, most: int) -> list[tuple[slice, slice]]:
    """Rows and tokens of each piece: whole rows if one has at most ``most`` tokens."""
    step, size = max(1, most // tokens), min(tokens, max(1, most))
    return [
        (slice(row, min(row + step, rows)), slice(token, token + size))
        for row in range(0, rows, step)
        for token in range(0, tokens, size)
    ]


def _attention(module: Attention, state: LayerState) -> Forward:
    own = module.forward

    def attend(x: Tensor, context: Tensor) -> Tensor:
        joined = state.joined_product(module, x) if context is x else None  # x may be wide
        if joined is None:
            joined = module.to_q(x), module.to_k(context), module.to_v(context)
        return module.to_out[0](ops.attention(*joined, module.heads))

    def forward(
        x: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        alike = state.take_alike()
        given = (
            attention_mask is not None or kwargs or x.dim() != 3 or not is_plain(module, x.shape[1])
        )
        if given or not state.kit.takes(x):
            return own(x, encoder_hidden_states, attention_mask, **kwargs)
        if encoder_hidden_states is None:
            return state.once(lambda x: attend(x, x), x, alike)
        return attend(x, encoder_hidden_states)

    return forward


_LAYERS: dict[type, Callable[[Any, Any], Forward]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    GEGLU: _geglu,
    FeedForward: _feed_forward,
    Attention: _attention,
}
