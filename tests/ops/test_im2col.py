import math

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from cmlora_fast.ops.im2col import col2im, im2col
from torch.library import opcheck

from ..support.op_checks import with_serial_pool

CASES = [  # image, kernel, stride, padding
    ((2, 4, 4, 6), [3, 3], [1, 1], [1, 1]),  # a resnet's convolution
    ((2, 7, 5, 3), [3, 3], [2, 2], [1, 1]),  # a downsampler; nothing divides
    ((1, 6, 9, 2), [2, 3], [3, 1], [0, 2]),  # height and width differ in everything
    ((1, 3, 3, 1), [3, 3], [1, 1], [0, 0]),  # one place
    ((3, 5, 5, 4), [1, 1], [2, 2], [0, 0]),  # pixels that no place reads
    ((0, 4, 4, 2), [3, 3], [1, 1], [1, 1]),  # no images
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    shape, *form = case
    x = torch.randn(shape)
    columns = im2col(x, *form)
    assert columns.is_contiguous()
    if x.numel():
        assert torch.equal(columns, reference.im2col(x, *form))
    grad = torch.randn_like(columns)
    images = col2im(grad, shape[1:3], *form)
    assert images.shape == x.shape and images.is_contiguous()
    if x.numel():
        torch.testing.assert_close(images, reference.col2im(grad, shape[1:3], *form))
        with ops.force(backend="torch"):
            assert torch.equal(im2col(x, *form), columns)


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_transposes_of_each_other(case):
    shape, *form = case
    x = torch.randn(shape)
    columns = im2col(x, *form)
    grad = torch.randn_like(columns)
    there = (columns.double() * grad).sum()
    back = (x.double() * col2im(grad, shape[1:3], *form)).sum()
    terms = math.prod(form[0])  # at most so many meet in a pixel, in float32
    sizes = (x.double().abs() * col2im(grad.abs(), shape[1:3], *form)).sum()
    assert (there - back).abs() <= terms * torch.finfo(torch.float32).eps * sizes


def test_product_with_the_weight_is_the_convolution():
    x, weight = torch.randn(2, 6, 5, 7), torch.randn(4, 6, 3, 3)
    columns = im2col(x.permute(0, 2, 3, 1).contiguous(), [3, 3], [2, 1], [1, 0])
    ours = (columns @ weight.flatten(1).T).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, torch.conv2d(x, weight, stride=(2, 1), padding=(1, 0)))


def test_independent_of_threads():
    x, form = torch.randn(4, 16, 16, 40), ([3, 3], [1, 1], [1, 1])
    columns = im2col(x, *form)
    assert torch.equal(with_serial_pool(lambda: im2col(x, *form)), columns)
    back = col2im(columns, [16, 16], *form)
    assert torch.equal(with_serial_pool(lambda: col2im(columns, [16, 16], *form)), back)


def test_registration():
    x, form = torch.randn(1, 4, 5, 2), ([3, 2], [1, 2], [1, 0])
    opcheck(im2col.op, (x, *form))
    opcheck(col2im.op, (im2col(x, *form), [4, 5], *form))


def test_wrong_arguments_are_named():
    x, one = torch.randn(1, 4, 5, 2), [1, 1]
    columns = im2col(x, [3, 3], one, one)
    wrong = [
        (im2col, (x.double(), one, one, one), TypeError, "float32"),
        (im2col, (x.mT, one, one, one), ValueError, "contiguous"),
        (im2col, (x[0], one, one, one), ValueError, "B, H, W, C"),
        (im2col, (x, [0, 1], one, one), ValueError, "sizes > 0"),
        (im2col, (x, one, one, [-1, 0]), ValueError, "padding >= 0"),
        (im2col, (x, [5, 5], one, [0, 0]), ValueError, "no smaller than the kernel"),
        (col2im, (columns, [4, 6], [3, 3], one, one), ValueError, "places"),
        (col2im, (columns, [4, 5], [3, 3], [2, 2], one), ValueError, "places"),
    ]
    for op, arguments, error, message in wrong:
        with pytest.raises(error, match=message):
            op(*arguments)
