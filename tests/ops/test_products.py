import copy

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops.products import PackedConv, conv2d, fast_on_cpu, linear
from torch import nn


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def assert_close(ours, layer, x):
    exact = copy.deepcopy(layer).double()(x.double())
    error, torchs = (exact - ours).abs().max(), (exact - layer(x)).abs().max()
    assert error <= 2 * torchs + 2e-6 * exact.abs().max()


@pytest.mark.parametrize("shape", [(2, 7, 33), (5, 33), (1, 33), (0, 33)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    layer, x = nn.Linear(33, 70, bias=bias), torch.randn(shape)
    if x.numel():
        assert_close(linear(x, layer.weight, layer.bias), layer, x)
    assert linear(x, layer.weight, layer.bias).shape == (*shape[:-1], 70)


CONVS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, padding=1),  # a downsampler
    dict(kernel_size=1),  # a shortcut
    dict(kernel_size=1, stride=2),
    dict(kernel_size=3, padding=1, groups=2),
    dict(kernel_size=3, padding="same"),
    dict(kernel_size=3, padding=2, dilation=2, bias=False),
]


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolutions(options, layout):
    layer = nn.Conv2d(6, 10, **options)
    for size in (4, 19):  # with fewer and with more values than the weight
        x = torch.randn(2, 6, size, size).contiguous(memory_format=layout)
        assert_close(PackedConv(layer)(x), layer, x)
        assert_close(conv2d(x, layer.weight, layer), layer, x)


def test_packed_weight_follows_the_layer():
    layer, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 3, 3)
    packed = PackedConv(layer)
    assert_close(packed(x), layer, x)
    layer.weight.mul_(-2.0)  # in place
    assert_close(packed(x), layer, x)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    assert_close(packed(x), layer, x)


def test_what_is_left_to_torch():
    x = torch.randn(3)
    assert fast_on_cpu(x) and not fast_on_cpu(x.half()) and not fast_on_cpu(x.double())
    with torch.enable_grad():
        assert not fast_on_cpu(x)
    with ops.force(backend="torch"):
        assert not fast_on_cpu(x)
    with torch.autocast("cpu"):
        assert not fast_on_cpu(x)
