"""The pixels under a convolution's kernel side by side: a convolution is then one product."""

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import check_floats, describe, shape_error
from ._register import register
from .backends import pick

Pair = list[int]


def _places(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """In how many rows and columns the kernel stands."""
    sizes = zip(size, kernel, stride, padding, strict=True)
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes]


def _check(op: str, x: Tensor, expected: str, dims: int, *pairs: Pair) -> None:
    if x.dtype is not torch.float32:
        raise TypeError(f"{op}: expected float32; got {describe(x)}")
    check_floats(op, "x" if op == "im2col" else "columns", x)
    if x.dim() != dims or not x.is_contiguous():
        raise shape_error(op, expected, x)
    if any(len(pair) != 2 for pair in pairs) or min(*pairs[0], *pairs[1]) < 1 or min(pairs[2]) < 0:
        raise ValueError(
            f"{op}: expected two sizes > 0 of kernel and stride, two of padding >= 0; got {pairs}"
        )


def _fake(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    rows, cols = _places(x.shape[1:3], kernel, stride, padding)
    return x.new_empty(x.shape[0], rows, cols, x.shape[3] * kernel[0] * kernel[1])


@register(fake=_fake)
def im2col(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """``out[b, i, j, (c, p, q)] = x[b, i · stride + p - padding, j · stride + q - padding, c]``

    0 outside of the image. In the order of a convolution's weight: ``out @ weight.flatten(1).T`` is
    the convolution. No autograd.

    Args:
        x: Images, channels last. float32 [B, H, W, C], contiguous.
        kernel, stride, padding: Of height and width.

    Returns:
        [B, rows, columns, C · kernel[0] · kernel[1]], contiguous.
    """
    op = "im2col"
    _check(op, x, "x [B, H, W, C], contiguous", 4, kernel, stride, padding)
    places = _places(x.shape[1:3], kernel, stride, padding)
    if min(places) < 1:
        raise shape_error(op, f"x no smaller than the kernel {kernel}, padded by {padding}", x)
    if pick(op, x, ("cpu",)) == "torch":
        return reference.im2col(x, kernel, stride, padding)
    out = _fake(x, kernel, stride, padding)
    _C.im2col(x.data_ptr(), out.data_ptr(), x.shape, kernel, stride, padding, places)
    return out


def _fake_back(columns: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    channels = columns.shape[3] // (kernel[0] * kernel[1])
    return columns.new_empty(columns.shape[0], *size, channels)


@register(fake=_fake_back)
def col2im(
    columns: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """The transpose of ``im2col``: every column summed into the pixel it came from. No autograd.

    Args:
        columns: float32 [B, rows, columns, C · kernel[0] · kernel[1]], contiguous.
        size: Height and width of the images.
        kernel, stride, padding: As for ``im2col``.

    Returns:
        [B, *size, C], contiguous.
    """
    op = "col2im"
    form = "columns [B, rows, columns, C * kernel], contiguous"
    _check(op, columns, form, 4, kernel, stride, padding)
    places = _places(size, kernel, stride, padding)
    if list(columns.shape[1:3]) != places or columns.shape[3] % (kernel[0] * kernel[1]):
        raise shape_error(op, f"{form}, of {places} places and a kernel {kernel}", columns)
    if pick(op, columns, ("cpu",)) == "torch":
        return reference.col2im(columns, size, kernel, stride, padding)
    out = _fake_back(columns, size, kernel, stride, padding)
    _C.col2im(out.data_ptr(), columns.data_ptr(), out.shape, kernel, stride, padding, places)
    return out
