import copy

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops.products import conv2d, fast_on_cpu, linear
from torch import nn


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def assert_close(ours, layer, x, weight=None):
    if weight is not None:
        layer.weight = nn.Parameter(weight)
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


@pytest.mark.parametrize("shape", [(2, 7, 33), (5, 33), (1, 33), (0, 33)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.enable_grad()
def test_gradient_of_linear(shape, bias):
    layer = nn.Linear(33, 70, bias=bias).requires_grad_(False)
    x = torch.randn(shape, requires_grad=True)
    y = linear(x, layer.weight, layer.bias)
    for grad in (torch.randn(y.shape), torch.randn(*shape[:-1], 1).expand(y.shape)):
        (slope,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        assert slope.shape == x.shape
        if x.numel():
            assert_close(slope, nn.Linear(70, 33, bias=False), grad, layer.weight.t())


def test_frozen_weights_take_another_product():
    """The same sums by oneDNN; a weight that wants a gradient gets torch's own."""
    layer, x = nn.Linear(33, 70), torch.randn(2, 33, requires_grad=True)
    with torch.enable_grad():
        assert linear(x, layer.weight, layer.bias).grad_fn.name() == "AddmmBackward0"
        layer.requires_grad_(False)
        assert "_Linear" in linear(x, layer.weight, layer.bias).grad_fn.name()
        assert not linear(x.detach(), layer.weight, layer.bias).requires_grad


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
        assert_close(conv2d(x, layer.weight, layer), layer, x)


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@torch.enable_grad()
def test_gradient_of_convolutions(options, layout):
    layer = nn.Conv2d(6, 10, **options).requires_grad_(False)
    wide = copy.deepcopy(layer).double()
    for size in (4, 5, 19):
        x = torch.randn(2, 6, size, size).contiguous(memory_format=layout).requires_grad_()
        far = x.detach().double().requires_grad_()
        y, exact = conv2d(x, layer.weight, layer), wide(far)
        for grad in (torch.randn_like(y), torch.randn(2, 1, 1, 1).expand(y.shape)):
            ours = torch.autograd.grad(y, x, grad, retain_graph=True)[0]
            want = torch.autograd.grad(exact, far, grad.double(), retain_graph=True)[0]
            torchs = torch.autograd.grad(layer(x), x, grad)[0]
            error, limit = (ours - want).abs().max(), 2 * (torchs - want).abs().max()
            assert error <= limit + 2e-6 * want.abs().max()


@torch.enable_grad()
def test_a_graph_of_convolutions_keeps_no_image():
    layer, kept = nn.Conv2d(6, 10, 3, padding=1).requires_grad_(False), []
    for size in (4, 19):
        x = torch.randn(2, 6, size, size, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            conv2d(x, layer.weight, layer)
    assert {t.data_ptr() for t in kept} == {layer.weight.data_ptr()}


def test_what_is_left_to_torch():
    x = torch.randn(3)
    assert fast_on_cpu(x) and not fast_on_cpu(x.half()) and not fast_on_cpu(x.double())
    weight = torch.ones(3, requires_grad=True)
    assert fast_on_cpu(x, weight, None)
    with torch.enable_grad():
        assert fast_on_cpu(x, x, None) and not fast_on_cpu(x, weight)
    with ops.force(backend="torch"):
        assert not fast_on_cpu(x)
    with torch.autocast("cpu"):
        assert not fast_on_cpu(x)
