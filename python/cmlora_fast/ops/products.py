"""Matrix products and convolutions by the fastest of torch's own libraries, float32 on a CPU.

MKL, which ``F.linear`` calls, keeps to AVX2 on processors that are not Intel's; oneDNN does not:
more than twice as fast with AVX-512 on an AMD EPYC. ``F.conv2d`` calls oneDNN, but brings the
weight into oneDNN's own order at every call: on small images that takes longer than the
convolution, up to eight times. Both are what torch's own compiler would call instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .backends import pick

__all__ = [
    "PackedConv",
    "conv2d",
    "fast_on_cpu",
    "is_pointwise",
    "linear",
    "linear_",
    "product",
    "takes_product",
]

_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")
)


def fast_on_cpu(x: Tensor, *constants: Tensor | None) -> bool:
    """Whether the fast kernels compute what follows from ``x``: float32 on a CPU.

    A graph may be recorded of them, but leads to no gradient of ``constants``.
    """
    if not x.is_cpu or x.dtype is not torch.float32:
        return False
    if torch.is_grad_enabled() and any(c is not None and c.requires_grad for c in constants):
        return False
    return not torch.is_autocast_enabled("cpu") and pick("unet", x, ("cpu",)) == "cpu"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by oneDNN where that is faster."""
    if not takes_product(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


def takes_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether ``product`` computes these, and a gradient is wanted of ``x`` at most."""
    return _ONEDNN and weight.dtype is x.dtype and fast_on_cpu(x, weight, bias)


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


def conv2d(x: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
    """``layer`` with another weight; one of a single pixel is a linear layer of channels."""
    if is_pointwise(layer) and fast_on_cpu(x):
        return linear(x.permute(0, 2, 3, 1), weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    return F.conv2d(
        x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


class PackedConv:
    """A convolution that keeps its weight in oneDNN's order, made anew when the weight changes."""

    def __init__(self, layer: nn.Conv2d):
        self.layer = layer
        self._packed: Tensor | None = None
        self._key: tuple | None = None
        self._source: Tensor | None = None  # alive, so that its address is no other weight's

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight, at = layer.weight, (layer.padding, layer.stride, layer.dilation, layer.groups)
        recorded = torch.is_grad_enabled() and x.requires_grad
        if is_pointwise(layer) or recorded or not self._pays(x):
            return conv2d(x, weight, layer)
        key = (weight.data_ptr(), weight._version)
        if key != self._key:
            self._key, self._source = key, weight.detach()
            plain = self._source.to_mkldnn()
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *at, x.shape)
        padding, stride, dilation, groups = at
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, layer.bias, padding, stride, dilation, groups, "none", [], ""
        )

    @property
    def bytes(self) -> int:
        """Of the packed copy, if there is one."""
        return 0 if self._packed is None else self._source.numel() * self._source.element_size()

    def _pays(self, x: Tensor) -> bool:
        weight = self.layer.weight
        larger = weight.numel() > x.numel()  # else its order costs little beside the convolution
        plain = type(weight) is nn.Parameter and not weight.is_inference()
        return larger and plain and _ONEDNN and isinstance(self.layer.padding, tuple)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether the convolution is a linear layer of channels."""
    plain = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
    return plain and layer.padding in ((0, 0), "valid", "same")
