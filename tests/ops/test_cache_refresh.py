import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import with_serial_pool

SHAPES = [  # C, H, W
    (1, 1, 1),  # the smallest
    (6, 8, 8),  # contiguous planes
    (3, 5, 7),  # nothing divides a vector
]


def rows(*indices):
    return torch.tensor(indices, dtype=torch.int32)


def check(cache, fresh, rows):
    expected = cache.clone()
    reference.cache_refresh_(expected, fresh, rows)
    ops.cache_refresh_(cache, fresh, rows)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index", [(2,), (3, 0), (0, 1, 2, 3), ()], ids=str)
def test_matches_reference(shape, index, dtype):
    cache, fresh = torch.randn(4, *shape), torch.randn(len(index), *shape)
    check(cache.to(dtype), fresh.to(dtype), rows(*index))


def test_channel_slice_of_a_larger_buffer(dtype):
    buffer = torch.randn(4, 9, 5, 8).to(dtype)
    before = buffer.clone()
    check(buffer[:, 2:6], torch.randn(2, 4, 5, 8).to(dtype), rows(3, 1))
    assert torch.equal(buffer[:, :2], before[:, :2])
    assert torch.equal(buffer[:, 6:], before[:, 6:])


def test_strided_planes(dtype):
    buffer = torch.randn(4, 3, 6, 20).to(dtype)
    shared = torch.randn(1, 3, 6, 10).to(dtype).expand(2, -1, -1, -1)
    check(buffer[..., 3:13], shared, rows(0, 2))
    check(buffer[:, :, ::2, 3:13], shared[:, :, ::2], rows(0, 2))


def test_bits_survive():
    cache = torch.zeros(1, 1, 1, 4)
    fresh = torch.tensor([-0.0, float("nan"), float("inf"), 1e-42]).view(1, 1, 1, 4)
    ops.cache_refresh_(cache, fresh, rows(0))
    assert torch.equal(cache.view(torch.int32), fresh.view(torch.int32))


def test_threads_agree():
    cache, fresh = torch.zeros(8, 64, 64, 64), torch.randn(4, 64, 64, 64)
    ops.cache_refresh_(cache, fresh, rows(7, 5, 3, 1))
    assert torch.equal(cache[[7, 5, 3, 1]], fresh)
    serial = torch.zeros_like(cache)
    with_serial_pool(lambda: ops.cache_refresh_(serial, fresh, rows(7, 5, 3, 1)))
    assert torch.equal(serial, cache)


def test_registration():
    cache, fresh = torch.randn(4, 3, 2, 2), torch.randn(2, 3, 2, 2)
    opcheck(ops.cache_refresh_.op, (cache, fresh, rows(2, 0)))


def test_compiles_without_graph_break():
    def step(cache, fresh):
        ops.cache_refresh_(cache[:, 1:], fresh, rows(2, 0))
        return cache + 1

    cache, fresh = torch.zeros(4, 3, 2, 2), torch.randn(2, 2, 2, 2)
    torch.compile(step, fullgraph=True, backend="aot_eager")(cache, fresh)
    assert torch.equal(cache[[2, 0], 1:], fresh)


def test_wrong_arguments_are_named():
    cache, fresh = torch.zeros(4, 3, 2, 2), torch.randn(2, 3, 2, 2)
    wrong = [
        ((cache, fresh[:, 1:], rows(0, 1)), ValueError, r"expected cache \[S, C, H, W\]"),
        ((cache, fresh.half(), rows(0, 1)), TypeError, r"cache, fresh of one dtype"),
        ((cache, fresh, rows(0)), ValueError, r"expected rows \[R\] for fresh"),
        ((cache, fresh, rows(0, 1).long()), TypeError, r"rows \[R\] as int32 tensor; got int64"),
        ((cache, fresh, rows(0, 4)), ValueError, r"rows\[1\] in 0 \.\. 3; got 4"),
        ((cache, fresh, rows(-1, 0)), ValueError, r"rows\[0\] in 0 \.\. 3; got -1"),
        ((cache, fresh, rows(1, 1)), ValueError, r"rows\[1\] to differ .* got 1 twice"),
        ((cache[:1].expand(4, -1, -1, -1), fresh, rows(0, 1)), ValueError, "without overlap"),
        ((cache.mT, fresh, rows(0, 1)), ValueError, "contiguous in W"),
        ((cache, fresh.clone().requires_grad_(), rows(0, 1)), RuntimeError, "records no gradient"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match="cache_refresh_: .*" + message):
            ops.cache_refresh_(*arguments)
    assert not cache.any()
