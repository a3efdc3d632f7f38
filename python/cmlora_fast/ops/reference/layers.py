"""Twins of what a UNet's layers are made of."""

import torch.nn.functional as F
from torch import Tensor

from ..tensors import accumulator

__all__ = [
    "attention",
    "col2im",
    "geglu",
    "group_norm",
    "im2col",
]


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
) -> Tensor:
    dtype = accumulator(x.dtype)
    z = x.to(dtype) if shift is None else x.to(dtype) + shift.to(dtype)[:, None]
    out = F.group_norm(z.mT, groups, weight.to(dtype), bias.to(dtype), eps).mT
    return (F.silu(out) if silu else out).to(x.dtype).contiguous()


def geglu(x: Tensor) -> Tensor:
    value, gate = x.to(accumulator(x.dtype)).chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(x.dtype)


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
