"""How many columns a layer's input shall leave free, where the layer certainly knows of them.

Adapters that run as part of their base's product write there, see ``adapters.WideLayer``.
"""

from __future__ import annotations

from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from .state import LayerState
from .tap import TapProcessor

__all__ = ["cross_room", "feed_forward_room", "is_gated", "is_plain", "self_room"]


def is_plain(module: Attention, tokens: int) -> bool:
    """Nothing but projections and attention, as diffusers' default processor computes it."""
    extras = (module.spatial_norm, module.group_norm, module.norm_q, module.norm_k)
    processor = module.processor
    if isinstance(processor, TapProcessor) and not processor.hears(tokens):
        processor = processor.plain
    return (
        type(processor) is AttnProcessor2_0
        and not any(extra is not None for extra in extras)
        and not (module.norm_cross or module.residual_connection or module.training)
        and module.rescale_output_factor == 1.0
    )


def is_gated(module: FeedForward, state: LayerState) -> bool:
    """A gate of ours, a dropout that does nothing, a product; and nobody hears of them."""
    if len(module.net) != 3 or module.training:
        return False
    gate, dropout, last = module.net
    known = type(gate) is GEGLU and type(dropout) is nn.Dropout and isinstance(last, nn.Module)
    return known and state.runs(gate) and not state.heard(module.net, gate, dropout)


def self_room(module: Attention, state: LayerState, tokens: int) -> int:
    """Of queries, keys and values."""
    return state.joined_room(module) if _runs(module, state, tokens) else 0


def cross_room(module: Attention, state: LayerState, tokens: int) -> int:
    """Of queries alone."""
    return state.room(module.to_q) if _runs(module, state, tokens) else 0


def feed_forward_room(module: FeedForward, state: LayerState) -> int:
    """Of what comes before the gate."""
    known = state.runs(module) and not state.heard(module) and is_gated(module, state)
    return state.room(module.net[0].proj) if known else 0


def _runs(module: Attention, state: LayerState, tokens: int) -> bool:
    return state.runs(module) and not state.heard(module) and is_plain(module, tokens)
