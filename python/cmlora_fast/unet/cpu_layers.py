"""diffusers' layers on a CPU by faster kernels: the same sums, to rounding.

What torch runs slowly there in float32: matrix products, attention, the feed-forward's gate, and
changes of layout between images and tokens. Images stay channels-last, so that tokens are a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from .. import ops
from ..ops.products import conv2d, fast_on_cpu, linear
from .state import LayerState
from .tap import TapProcessor

__all__ = ["fast_modules"]

Forward = Callable[..., Any]

# Bytes of one layer's output: memory of 32 MiB and more glibc takes from the system anew at every
# call, and page faults then cost as much as the product that fills it.
LARGEST = 16 << 20


def fast_modules(unet: nn.Module, state: LayerState) -> Iterator[tuple[nn.Module, Forward]]:
    """Modules of ``unet`` that have a faster forward, and that forward."""
    for name, module in unet.named_modules():
        make = _FORWARDS.get(type(module))
        # PEFT's factors run folded or in a slab; who replaced a forward wants it to be called.
        if make is not None and ".lora_" not in name and "forward" not in module.__dict__:
            yield module, make(module, state)


def _linear(module: nn.Linear, state: LayerState) -> Forward:
    return lambda x: linear(x, module.weight, module.bias)


def _conv(module: nn.Conv2d, state: LayerState) -> Forward:
    own = module.forward
    if module.padding_mode != "zeros":
        return own
    return lambda x: conv2d(x, module.weight, module)


def _geglu(module: GEGLU, state: LayerState) -> Forward:
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not fast_on_cpu(x):
            return own(x, *args, **kwargs)
        return ops.geglu(module.proj(x))

    return forward


def _feed_forward(module: FeedForward, state: LayerState) -> Forward:
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, gate = state.rows, module.net[0]
        given = args or kwargs or torch.is_grad_enabled()  # a graph keeps every piece
        if given or x.dim() != 3 or type(gate) is not GEGLU or not fast_on_cpu(x):
            return own(x, *args, **kwargs)
        pieces = _pieces(*x.shape[:2], LARGEST // (gate.proj.out_features * x.element_size()))
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
        q, k, v = module.to_q(x), module.to_k(context), module.to_v(context)
        return module.to_out[0](ops.attention(q, k, v, module.heads))

    def forward(
        x: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        alike = state.take_alike()
        if attention_mask is not None or kwargs or not fast_on_cpu(x) or not _is_plain(module, x):
            return own(x, encoder_hidden_states, attention_mask, **kwargs)
        if encoder_hidden_states is None:
            return state.once(lambda x: attend(x, x), x, alike)
        return attend(x, encoder_hidden_states)

    return forward


def _is_plain(module: Attention, x: Tensor) -> bool:
    """Nothing but projections and attention, as diffusers' default processor computes it."""
    extras = (module.spatial_norm, module.group_norm, module.norm_q, module.norm_k)
    processor = module.processor
    if isinstance(processor, TapProcessor) and not processor.hears(x.shape[1]):
        processor = processor.plain
    return (
        type(processor) is AttnProcessor2_0
        and x.dim() == 3
        and not any(extra is not None for extra in extras)
        and not (module.norm_cross or module.residual_connection or module.training)
        and module.rescale_output_factor == 1.0
    )


def _resnet(module: ResnetBlock2D, state: LayerState) -> Forward:
    own = module.forward
    usual = module.upsample is None and module.downsample is None
    usual = usual and module.time_embedding_norm == "default"
    usual = usual and type(module.nonlinearity) is nn.SiLU

    def forward(x: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        given = args or kwargs or module.training or torch.is_grad_enabled() or not usual
        if given or not (fast_on_cpu(x) and x.is_contiguous(memory_format=torch.channels_last)):
            return own(x, temb, *args, **kwargs)
        hidden = module.conv1(_norm_silu(module.norm1, x))
        shift = None
        if temb is not None and module.time_emb_proj is not None:
            shift = module.time_emb_proj(module.nonlinearity(temb)).expand(x.shape[0], -1)
        hidden = module.conv2(_norm_silu(module.norm2, hidden, shift))
        if module.conv_shortcut is not None:
            x = module.conv_shortcut(x)
        hidden = hidden + x
        scale = module.output_scale_factor
        return hidden if scale == 1 else hidden / scale

    return forward


def _norm_silu(norm: nn.GroupNorm, images: Tensor, shift: Tensor | None = None) -> Tensor:
    """SiLU of the norm of channels-last images (rows, C, h, w) plus ``shift`` (rows, C)."""
    tokens = images.permute(0, 2, 3, 1)
    shift = None if shift is None else shift.contiguous()
    out = ops.group_norm(
        tokens.flatten(1, 2), norm.num_groups, norm.weight, norm.bias, shift, norm.eps, silu=True
    )
    return out.view(tokens.shape).permute(0, 3, 1, 2)


def _transformer(module: Transformer2DModel, state: LayerState) -> Forward:
    own = module.forward

    def tokens(x: Tensor) -> Tensor:
        hidden = module.norm(x)
        if not module.use_linear_projection:
            hidden = module.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).flatten(1, 2)
        return module.proj_in(hidden) if module.use_linear_projection else hidden

    def forward(
        x: Tensor,
        encoder_hidden_states: Any = None,
        *args: Any,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        alike = state.take_alike()
        given = args or return_dict or any(value is not None for value in kwargs.values())
        if given or not module.is_input_continuous or not fast_on_cpu(x):
            kwargs |= {"cross_attention_kwargs": cross_attention_kwargs}
            return own(x, encoder_hidden_states, *args, return_dict=return_dict, **kwargs)
        height, width = x.shape[2:]
        hidden = state.once(tokens, x, alike)
        for block in module.transformer_blocks:
            # Its self-attention comes first; what somebody else's does first is not known.
            known = type(block) is BasicTransformerBlock and "forward" not in block.__dict__
            state.alike, alike = alike if known else None, None
            hidden = block(
                hidden,
                encoder_hidden_states=encoder_hidden_states,
                cross_attention_kwargs=cross_attention_kwargs,
            )
        if module.use_linear_projection:
            hidden = module.proj_out(hidden)
        hidden = hidden.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        if not module.use_linear_projection:
            hidden = module.proj_out(hidden)
        return (hidden + x,)

    return forward


_FORWARDS: dict[type, Callable[[Any, Any], Forward]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    GEGLU: _geglu,
    FeedForward: _feed_forward,
    Attention: _attention,
    ResnetBlock2D: _resnet,
    Transformer2DModel: _transformer,
}
