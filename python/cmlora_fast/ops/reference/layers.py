"""Twins of what a UNet's layers are made of."""

import torch.nn.functional as F
from torch import Tensor

from ..tensors import accumulator

__all__ = [
    "add_layer_norm",
    "add_shift",
    "attention",
    "col2im",
    "geglu",
    "group_norm",
    "im2col",
    "layer_norm",
]


def widened(out: Tensor, room: int) -> Tensor:
    """``out`` with ``room`` more columns, whatever stands there."""
    if not room:
        return out
    wide = out.new_empty(*out.shape[:-1], out.shape[-1] + room)
    wide[..., : out.shape[-1]] = out
    return wide


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    split = [tokens.unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (q, k, v)]
    return F.scaled_dot_product_attention(*split, scale=scale).transpose(1, 2).flatten(2)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    room: int = 0,
) -> Tensor:
    dtype = accumulator(x.dtype)
    z = x.to(dtype) if shift is None else x.to(dtype) + shift.to(dtype)[:, None]
    out = F.group_norm(z.mT, groups, weight.to(dtype), bias.to(dtype), eps).mT
    return widened((F.silu(out) if silu else out).to(x.dtype).contiguous(), room)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, room: int = 0
) -> Tensor:
    dtype = accumulator(x.dtype)
    affine = (None if t is None else t.to(dtype) for t in (weight, bias))
    out = F.layer_norm(x.to(dtype), x.shape[-1:], *affine, eps)
    return widened(out.to(x.dtype), room)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
    room: int = 0,
) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total, layer_norm(total, weight, bias, eps, room)


def add_shift(x: Tensor, y: Tensor, shift: Tensor, room: int = 0) -> Tensor:
    dtype = accumulator(x.dtype)
    return widened((x.to(dtype) + y.to(dtype) + shift.to(dtype)).to(x.dtype), room)


def geglu(x: Tensor, room: int = 0) -> Tensor:
    value, gate = x.to(accumulator(x.dtype)).chunk(2, dim=-1)
    return widened((value * F.gelu(gate)).to(x.dtype), room)


def im2col(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    columns = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=padding, stride=stride)
    sizes = zip(x.shape[1:3], kernel, stride, padding, strict=True)
    places = [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes]
    return columns.transpose(1, 2).reshape(x.shape[0], *places, columns.shape[1])


def col2im(
    columns: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    flat = columns.flatten(1, 2).transpose(1, 2)
    return F.fold(flat, size, kernel, padding=padding, stride=stride).permute(0, 2, 3, 1)
