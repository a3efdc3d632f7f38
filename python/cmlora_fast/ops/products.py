"""Matrix products and convolutions by the fastest of torch's own libraries, float32 on a CPU.

MKL, which ``F.linear`` calls, keeps to AVX2 on processors that are not Intel's; oneDNN does not:
more than twice as fast with AVX-512 on an AMD EPYC. ``F.conv2d`` calls oneDNN, but brings the
weight into oneDNN's own order at every call, which on small images takes longer than the
convolution: there it is one product instead, with the weight as it is. Weights of a graph are
frozen, so nothing is kept of it but them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ._check import DTYPES
from .backends import pick
from .im2col import col2im, im2col
from .tensors import DENSE

__all__ = [
    "conv2d",
    "fast_on_cpu",
    "fast_on_gpu",
    "is_pointwise",
    "linear",
    "linear_",
    "measured_convolutions",
    "product",
    "takes_product",
]

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fast_on_cpu(x: Tensor, *constants: Tensor | None) -> bool:
    """Whether the fast kernels compute what follows from ``x``: float32 on a CPU.

    A graph may be recorded of them, but leads to no gradient of ``constants``.
    """
    if not x.is_cpu or x.dtype is not torch.float32 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(c is not None and c.requires_grad for c in constants):
        return False
    return not torch.is_autocast_enabled("cpu") and pick("unet", x, ("cpu",)) == "cpu"


def fast_on_gpu(x: Tensor) -> bool:
    """Whether our CUDA kernels compute what follows from ``x``, of which no graph is recorded."""
    if not x.is_cuda or x.dtype not in DTYPES:
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not torch.is_autocast_enabled("cuda") and pick("unet", x, ("cuda",)) == "cuda"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by oneDNN where that is faster."""
    if not takes_product(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


def takes_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``product`` computes these, and a gradient is wanted of ``x`` at most."""
    if not (_ONEDNN and weight.dtype is x.dtype and type(weight) in DENSE and weight.is_cpu):
        return False
    return (bias is None or type(bias) in DENSE) and fast_on_cpu(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by oneDNN, past autograd. A transposed weight costs no more than a plain one."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Keeps nothing but its weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product(grad, weight.t()), None, None


def linear_(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """``out = x weightᵀ + bias``; x [..., K], out [..., N], contiguous. No autograd."""
    if _ONEDNN and fast_on_cpu(x) and weight.dtype is x.dtype:
        out.copy_(linear(x, weight, bias))  # oneDNN's saves more than the copy takes
    elif bias is None:
        torch.mm(x.flatten(0, -2), weight.t(), out=out.flatten(0, -2))
    else:
        torch.addmm(bias, x.flatten(0, -2), weight.t(), out=out.flatten(0, -2))


def conv2d(x: Tensor, weight: Tensor, layer: nn.Conv2d, biased: bool = True) -> Tensor:
    """``layer``, padded with zeros, with this weight; ``biased`` False: without its bias."""
    bias = layer.bias if biased else None
    if is_pointwise(layer) and _has_tokens(x):
        return linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    at = layer.stride, layer.padding, layer.dilation, layer.groups
    if not (isinstance(layer.padding, tuple) and takes_product(x, weight, bias)):
        return F.conv2d(x, weight, bias, *at)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Convolution.apply(x, weight, bias, *at)
    return _convolve(x, weight, bias, *at)


@contextmanager
def measured_convolutions() -> Iterator[None]:
    """cuDNN chooses its algorithms by measuring them, the first time that it sees a shape.

    Where the user asks for determinism, it goes on choosing by rule: two measurements may differ.
    """
    backend = torch.backends.cudnn
    before = backend.benchmark
    backend.benchmark = before or not backend.deterministic
    try:
        yield
    finally:
        backend.benchmark = before


def _has_tokens(x: Tensor) -> bool:
    """Whether the pixels of images are as good as rows of a matrix."""
    if fast_on_cpu(x):
        return True
    return fast_on_gpu(x) and x.is_contiguous(memory_format=torch.channels_last)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *at: Any) -> Tensor:
    if not _runs_as_product(x, weight, *at):
        return F.conv2d(x, weight, bias, *at)
    stride, padding = at[:2]
    columns = im2col(x.permute(0, 2, 3, 1).contiguous(), weight.shape[2:], stride, padding)
    return product(columns, weight.flatten(1), bias).permute(0, 3, 1, 2)


def _runs_as_product(x: Tensor, weight: Tensor, *at: Any) -> bool:
    """Whether copies of the image cost less than a copy of the weight."""
    dilation, groups = at[2:]
    return weight.numel() > x.numel() > 0 and groups == 1 and dilation == (1, 1)


class _Convolution(torch.autograd.Function):
    """Keeps nothing but its weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, *at: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.at, ctx.shape = at, x.shape
        return _convolve(x, weight, bias, *at)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        # No memory is touched: the gradient in x reads nothing of x but its form.
        x = torch.empty(ctx.shape, dtype=grad.dtype, memory_format=torch.channels_last)
        if _runs_as_product(x, weight, *ctx.at):
            columns = product(grad.permute(0, 2, 3, 1).contiguous(), weight.flatten(1).t())
            size, kernel, (stride, padding) = ctx.shape[2:], weight.shape[2:], ctx.at[:2]
            slope = col2im(columns, size, kernel, stride, padding).permute(0, 3, 1, 2)
        else:
            stride, padding, dilation, groups = ctx.at
            form = None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
            slope = torch.ops.aten.convolution_backward(grad, x, weight, *form)[0]
        return slope, *[None] * 6


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether the convolution is a linear layer of channels."""
    plain = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
    return plain and layer.padding in ((0, 0), "valid", "same")
