"""A layer and its adapters as one product, against their definition in float64."""

import pytest
import torch
from cmlora_fast.adapters.peft import AdaptedLayer, LayerAdapter
from cmlora_fast.adapters.wide import WideLayer, is_wide
from cmlora_fast.unet.rows import Rows, segments_of
from torch import nn

from ..support.op_checks import assert_as_good

SUBSETS = [("a",), ("a", "b"), (), ("c",)]
RANKS = {"a": 4, "b": 3, "c": 9}
MIXES = [(0, 0, 1, 2, 3), (3, 1), (2,), (1, 1, 1)]
SCALE = 0.7


def layer(N, K, dtype, base=None, ranks=RANKS):
    base = base or nn.Linear(K, N, bias=False)
    base.requires_grad_(False).to(dtype)
    adapters = {
        name: LayerAdapter(
            (torch.randn(r, *base.weight.shape[1:]) / K**0.5).to(dtype),
            torch.randn(N, r, *[1] * (base.weight.dim() - 2)).to(dtype),
            0.5 + i,
        )
        for i, (name, r) in enumerate(ranks.items())
    }
    return AdaptedLayer("layer", base, base, adapters)


def by_definition(layers, x, rows, dtype=torch.float64):
    """(rows, tokens, ΣN)"""
    outs = []
    for it in layers:
        weight = it.base.weight.to(dtype).flatten(1)
        y = x.to(dtype) @ weight.T
        if it.base.bias is not None:
            y = y + it.base.bias.to(dtype)
        for row, subset in enumerate(rows):
            for name in SUBSETS[subset]:
                a, b = (t.to(dtype).flatten(1) for t in (it.adapters[name].a, it.adapters[name].b))
                y[row] += it.adapters[name].scaling * SCALE * (x[row].to(dtype) @ a.T) @ b.T
        outs.append(y)
    return torch.cat(outs, -1)


def rows_of(subsets, on_device=False):
    count = len(subsets)
    if not on_device:
        return Rows(segments_of(subsets), count)
    index = torch.tensor(subsets, dtype=torch.int32)
    each = tuple((i, i, i + 1) for i in range(count))
    return Rows(each, count, subsets=index, subset_of_row=index)


def widen(x, room):
    wide = torch.full((*x.shape[:-1], x.shape[-1] + room), float("nan"), dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("room", [False, True], ids=["two products", "one product"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_rows_of_any_mix(mix, on_device, room, dtype):
    its = [layer(24, 16, dtype), layer(24, 16, dtype)]
    x = torch.randn(len(mix), 5, 16).to(dtype)
    exact, twin = (by_definition(its, x, mix, kind) for kind in (torch.float64, torch.float32))
    wide = WideLayer(its, SUBSETS, SCALE)
    with torch.no_grad():
        got = wide(widen(x, wide.room) if room else x, rows_of(mix, on_device))
    assert wide.room % 8 == 0 and wide.room >= 2 * sum(RANKS.values())
    if dtype is torch.float32:
        assert_as_good(got, twin, exact)
    eps = torch.finfo(dtype).eps
    assert (got.double() - exact).norm() <= 3 * eps * exact.norm()


@pytest.mark.parametrize("room", [False, True])
def test_one_subset_needs_no_mask(room, monkeypatch):
    it = layer(7, 37, torch.float32, ranks={"a": 5})
    x = torch.randn(2, 3, 37)
    wide = WideLayer([it], [("a",)], SCALE)
    monkeypatch.delattr("cmlora_fast.ops.scale_ranks_")
    with torch.no_grad():
        got = wide(widen(x, wide.room) if room else x, rows_of((0, 0)))
    assert torch.allclose(got.double(), by_definition([it], x, (0, 0)), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_convolutions(bias):
    it = layer(6, 10, torch.float32, nn.Conv2d(10, 6, 1, bias=bias))
    assert is_wide(it) and not is_wide(layer(6, 10, torch.float32, nn.Conv2d(10, 6, 3)))
    images = torch.randn(2, 10, 4, 3).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        got = WideLayer([it], SUBSETS, SCALE)(images, rows_of((1, 0)))
    want = by_definition([it], images.permute(0, 2, 3, 1).flatten(1, 2), (1, 0))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(got.permute(0, 2, 3, 1).flatten(1, 2).double(), want, atol=1e-5)


def test_an_adapter_that_a_row_does_not_carry_leaves_no_trace():
    it = layer(6, 16, torch.float32)
    it.adapters["c"].a.fill_(float("inf"))
    x = torch.rand(2, 3, 16) + 0.1
    with torch.no_grad():
        got = WideLayer([it], SUBSETS, SCALE)(x, rows_of((0, 1)))
    assert torch.allclose(got.double(), by_definition([it], x, (0, 1)), atol=1e-5)


def test_gradients_and_autocast():
    it = layer(6, 16, torch.float32)
    wide, rows = WideLayer([it], SUBSETS, SCALE), rows_of((0, 1, 2))
    x = torch.randn(3, 5, 16, requires_grad=True)
    want = by_definition([it], x, (0, 1, 2))
    slope = torch.autograd.grad(wide(x, rows).sum(), x)[0]
    assert torch.allclose(slope.double(), torch.autograd.grad(want.sum(), x)[0].double(), atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = wide(x, rows)
    assert got.dtype is torch.bfloat16
    assert (got.double() - want.detach()).norm() < 0.02 * want.detach().norm()


def test_biases_or_other_kinds_run_each_by_itself():
    with pytest.raises(ValueError, match="biases"):
        WideLayer([layer(4, 8, torch.float32, nn.Linear(8, 4))] * 2, SUBSETS, SCALE)
    mixed = layer(4, 8, torch.float32)
    half = (getattr(mixed.adapters["a"], name).half() for name in "ab")
    mixed.adapters["a"] = LayerAdapter(*half, 1.0)
    assert not is_wide(mixed)
