"""diffusers' blocks in the order of their own forwards, with what stands between products fused.

Their norms, activations and additions are ops of ours; products, attention and whatever carries
adapters are called as the modules that they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from .. import ops
from .rooms import cross_room, feed_forward_room, self_room
from .state import LayerState

__all__ = ["BLOCKS", "Forward", "norm_silu", "takes_norm"]

Forward = Callable[..., Any]


def takes_norm(norm: nn.Module, activation: nn.Module | None = None) -> bool:
    """Whether ``norm_silu`` computes both, or the op the norm alone; it records no gradient."""
    if type(norm) is not nn.GroupNorm or not norm.affine or torch.is_grad_enabled():
        return False
    if not _unheard(norm):
        return False
    return activation is None or (type(activation) is nn.SiLU and _unheard(activation))


def norm_silu(norm: nn.GroupNorm, images: Tensor, shift: Tensor | None = None) -> Tensor:
    """SiLU of the norm of channels-last images (rows, C, h, w) plus ``shift`` (rows or 1, C)."""
    return _norm(norm, images, shift, silu=True)


def _norm(
    norm: nn.GroupNorm,
    images: Tensor,
    shift: Tensor | None = None,
    silu: bool = False,
    room: int = 0,
) -> Tensor:
    """(rows, C + room, h, w)"""
    tokens = images.permute(0, 2, 3, 1)
    given = norm.num_groups, norm.weight, norm.bias, shift, norm.eps, silu, room
    out = ops.group_norm(tokens.flatten(1, 2), *given)
    return out.view(*tokens.shape[:3], -1).permute(0, 3, 1, 2)


def _unheard(*modules: nn.Module) -> bool:
    """Nobody notices that these are not called: no hook, no forward of somebody else."""
    return not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules
    )


def _images(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _resnet(module: ResnetBlock2D, state: LayerState) -> Forward:
    own = module.forward
    usual = module.upsample is None and module.downsample is None
    usual = usual and module.time_embedding_norm == "default"
    usual = usual and not getattr(module, "skip_time_act", False)

    def taken(x: Tensor) -> bool:
        norms = (module.norm1, module.norm2)
        plain = all(takes_norm(norm, module.nonlinearity) for norm in norms)
        return plain and not module.training and state.kit.takes(x)

    def forward(x: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not usual or not taken(x):
            return own(x, temb, *args, **kwargs)
        x = _images(x)
        hidden, bias = state.unbiased(module.conv1, norm_silu(module.norm1, x))
        shift = None
        if temb is not None and module.time_emb_proj is not None:
            shift = state.time_shift(module, temb, bias is not None)
        elif bias is not None:
            shift = bias[None]
        hidden, bias = state.unbiased(module.conv2, norm_silu(module.norm2, hidden, shift))
        if module.conv_shortcut is not None:
            x = module.conv_shortcut(x)
        hidden = _sum(hidden, x, bias)
        scale = module.output_scale_factor
        return hidden if scale == 1 else hidden / scale

    return forward


def _sum(images: Tensor, others: Tensor, bias: Tensor | None) -> Tensor:
    """``images + others + bias`` (C), all channels-last."""
    if bias is None:
        return images + others
    tokens = images.permute(0, 2, 3, 1)
    pair = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (images, _images(others)))
    return ops.add_shift(*pair, bias).view(tokens.shape).permute(0, 3, 1, 2)


def _transformer(module: Transformer2DModel, state: LayerState) -> Forward:
    own = module.forward

    def tokens(x: Tensor) -> Tensor:
        if takes_norm(module.norm):
            hidden = _norm(module.norm, x, room=state.room(module.proj_in))
        else:
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
        if given or not module.is_input_continuous or not state.kit.takes(x):
            kwargs |= {"cross_attention_kwargs": cross_attention_kwargs}
            return own(x, encoder_hidden_states, *args, return_dict=return_dict, **kwargs)
        x, (height, width) = _images(x), x.shape[2:]
        hidden = state.once(tokens, x, alike)
        for block in module.transformer_blocks:
            # Its self-attention comes first; what somebody else's does first is not known.
            known = type(block) is BasicTransformerBlock and state.runs(block)
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


def _block(module: BasicTransformerBlock, state: LayerState) -> Forward:
    own = module.forward
    norms = module.norm1, module.norm2, module.norm3
    usual = module.norm_type == "layer_norm" and module.pos_embed is None
    usual = usual and module.attn2 is not None and all(type(n) is nn.LayerNorm for n in norms)

    def forward(
        x: Tensor,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        given = attention_mask is not None or any(v is not None for v in (*args, *kwargs.values()))
        given = given or not usual or module._chunk_size is not None or torch.is_grad_enabled()
        if (
            given
            or x.dim() != 3
            or not x.is_contiguous()
            or not _unheard(*norms)
            or not state.kit.takes(x)
        ):
            return own(x, attention_mask, encoder_hidden_states, *args, **kwargs)
        text = encoder_hidden_states if module.only_cross_attention else None
        tokens = x.shape[1]
        room = cross_room if module.only_cross_attention else self_room
        normed = ops.layer_norm(x, *_affine(module.norm1), room(module.attn1, state, tokens))
        more = module.attn1(normed, encoder_hidden_states=text)
        room = cross_room(module.attn2, state, tokens)
        x, normed = ops.add_layer_norm(more, x, *_affine(module.norm2), room)
        more = module.attn2(normed, encoder_hidden_states=encoder_hidden_states)
        room = feed_forward_room(module.ff, state)
        x, normed = ops.add_layer_norm(more, x, *_affine(module.norm3), room)
        return module.ff(normed) + x

    return forward


def _affine(norm: nn.LayerNorm) -> tuple[Tensor | None, Tensor | None, float]:
    return norm.weight, norm.bias, norm.eps


BLOCKS: dict[type, Callable[[Any, Any], Forward]] = {
    ResnetBlock2D: _resnet,
    Transformer2DModel: _transformer,
    BasicTransformerBlock: _block,
}
