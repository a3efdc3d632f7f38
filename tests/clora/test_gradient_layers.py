"""Adapted layers in a graph: the gradient of x by the fast kernels equals autograd's."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.adapters.delta import DeltaLayer
from cmlora_fast.adapters.peft import AdaptedLayer, LayerAdapter
from cmlora_fast.unet.rows import Rows
from torch import nn

SUBSETS = [(), ("a",), ("a", "b")]
ROWS = Rows(((0, 0, 2), (1, 2, 3), (2, 3, 4)), 4)


def layer_of(base):
    outputs, inputs = base.weight.shape[:2]
    kernel = base.weight.shape[2:]
    adapters = {
        name: LayerAdapter(torch.randn(rank, inputs, *kernel), torch.randn(outputs, rank), scaling)
        for name, rank, scaling in (("a", 3, 0.5), ("b", 5, -1.5))
    }
    return AdaptedLayer("layer", base, base.requires_grad_(False), adapters)


def expected(layer, x):
    """Every row by its own folded weight, in float64."""
    rows = []
    for subset, start, stop in ROWS.segments:
        weight = layer.base.weight.double()
        for name in SUBSETS[subset]:
            a, b, scaling = (getattr(layer.adapters[name], f) for f in ("a", "b", "scaling"))
            weight = weight + scaling * (b.double() @ a.double().flatten(1)).view_as(weight)
        bias = None if layer.base.bias is None else layer.base.bias.double()
        run = nn.functional.linear if weight.dim() == 2 else nn.functional.conv2d
        rows.append(run(x[start:stop], weight, bias))
    return torch.cat(rows)


LAYERS = {
    "linear": (lambda: nn.Linear(33, 70), (4, 7, 33)),
    "no bias": (lambda: nn.Linear(33, 16, bias=False), (4, 1, 33)),
    "no tokens between": (lambda: nn.Linear(8, 6), (4, 8)),
    "pointwise": (lambda: nn.Conv2d(12, 20, 1), (4, 12, 3, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rows_and_gradient_equal_folded_weights(kind, backend):
    make, shape = LAYERS[kind]
    layer = layer_of(make())
    if kind == "pointwise" and backend == "torch":
        pytest.skip("convolutions by PEFT's own modules: tests/test_adapter_kinds.py")
    x = torch.randn(shape)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    exact = expected(layer, wide)
    with ops.force(backend=backend):
        y = DeltaLayer(layer, SUBSETS, 1.0)(x, ROWS)
        for grad in (torch.randn(y.shape), torch.randn(y.shape[:1] + (1,) * (y.dim() - 1))):
            grad = grad.expand(y.shape)
            slope = torch.autograd.grad(y, x, grad, retain_graph=True)[0]
            want = torch.autograd.grad(exact, wide, grad.double(), retain_graph=True)[0]
            torch.testing.assert_close(slope.double(), want, rtol=0, atol=2e-6 * want.abs().max())
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-6 * exact.abs().max().item())


def test_a_graph_keeps_no_activations():
    layer = layer_of(nn.Linear(64, 64))
    x = torch.randn(4, 9, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        DeltaLayer(layer, SUBSETS, 1.0)(x, ROWS)
    assert [t.data_ptr() for t in kept] == [layer.base.weight.data_ptr()]
