"""What kernels are told of memory: that it is there, whose it is, and what stands in it."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops.attention_masks import attention_masks
from cmlora_fast.ops.attention_tap import attention_tap
from cmlora_fast.ops.decide import decide_
from torch._subclasses.fake_tensor import FakeTensorMode

from ..support.op_checks import MIXES

TABLES = MIXES["plain"].tensors()
RANKS = MIXES["plain"].total_rank


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def floats(*shape):
    return torch.randn(*shape)


# Op -> what it is called with; those of floats are named by position.
CALLS = {
    "lora_delta_": lambda: (floats(2, 5, 6), floats(2, 5, 8), floats(RANKS, 8), floats(6, RANKS)),
    "lora_fold": lambda: (floats(6, 8), floats(RANKS, 8), floats(6, RANKS)),
    "cache_refresh_": lambda: (floats(4, 3, 5, 6), floats(2, 3, 5, 6)),
    "combine_": lambda: (floats(1, 2, 3, 4, 5), floats(1, 3, 2, 3, 4, 5)),
    "radial_amplitude": lambda: (floats(2, 3, 8, 8),),
    "geglu": lambda: (floats(2, 5, 8),),
    "group_norm": lambda: (floats(2, 6, 8),),
    "layer_norm": lambda: (floats(2, 5, 8),),
    "attention": lambda: (floats(2, 5, 8), floats(2, 7, 8), floats(2, 7, 8)),
    "im2col": lambda: (floats(2, 5, 6, 4),),
}
REST = {
    "lora_delta_": TABLES,
    "lora_fold": TABLES,
    "cache_refresh_": (ints(3, 1),),
    "combine_": (torch.rand(3, 2),),
    "radial_amplitude": (0.2,),
    "group_norm": (2, torch.ones(8), torch.zeros(8)),
    "layer_norm": (torch.ones(8), torch.zeros(8)),
    "attention": (2,),
    "im2col": ((3, 3), (1, 1), (1, 1)),
}
PLACES = [(op, place) for op, make in CALLS.items() for place in range(len(make()))]
FLOATS = pytest.mark.parametrize("op, place", PLACES)


def run(name, given):
    from cmlora_fast.ops.im2col import im2col

    op = im2col if name == "im2col" else getattr(ops, name)
    return op(*given, *REST.get(name, ()))


@pytest.mark.parametrize("op", CALLS)
def test_the_calls_are_sound(op):
    run(op, CALLS[op]())


@FLOATS
def test_memory_that_was_given_back(op, place):
    given = list(CALLS[op]())
    given[place].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="that have memory"):
        run(op, given)


@FLOATS
def test_signs_that_are_not_in_memory(op, place):
    given = list(CALLS[op]())
    given[place] = torch.complex(given[place], given[place]).conj().imag
    assert given[place].is_neg()
    with pytest.raises(ValueError, match=r"resolve_neg|contiguous"):
        run(op, given)


@pytest.mark.parametrize("op", CALLS)
def test_tensors_without_memory(op):
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = CALLS[op]()
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            run(op, given)


def test_registered_ops_know_tensors_without_memory():
    with FakeTensorMode():
        assert torch.ops.cmlora_fast.geglu(torch.randn(2, 5, 8)).shape == (2, 5, 4)


def sliding(*shape):
    """Every row one element further: nearly all of them share memory."""
    sizes, strides = list(shape), [1] * len(shape)
    return torch.randn(sum(shape)).as_strided(sizes, strides)


def beside(first, second, shift):
    """Two tensors like these in one buffer, the second ``shift`` elements on."""
    buffer = torch.randn(first.numel() + second.numel() + shift)
    pair = (buffer[: first.numel()], buffer[shift : shift + second.numel()])
    return [flat.view(like.shape) for flat, like in zip(pair, (first, second), strict=True)]


WRITTEN = ["lora_delta_", "cache_refresh_", "combine_"]


@pytest.mark.parametrize("op", WRITTEN)
def test_what_is_written_shares_no_memory_in_itself(op):
    given = list(CALLS[op]())
    given[0] = sliding(*given[0].shape)
    before = given[0].clone()
    with pytest.raises(ValueError, match="without overlap"):
        run(op, given)
    assert torch.equal(given[0], before)


@pytest.mark.parametrize("shift", [0, 1, 7])
@pytest.mark.parametrize("op", WRITTEN)
def test_what_is_written_is_not_read(op, shift):
    given = list(CALLS[op]())
    given[:2] = beside(*given[:2], shift)
    before = given[0].clone()
    with pytest.raises(ValueError, match="without overlap"):
        run(op, given)
    assert torch.equal(given[0], before)


def test_halves_of_one_buffer_may_be_written_and_read():
    buffer = torch.randn(4, 6, 5, 6)
    cache, fresh = buffer[:, :3], buffer[:2, 3:]
    want = cache.clone()
    want[[3, 1]] = fresh
    ops.cache_refresh_(cache, fresh, ints(3, 1))
    assert torch.equal(cache, want)
    wide = torch.zeros(2, 5, 14)
    y, x, a, b = CALLS["lora_delta_"]()
    wide[..., :6], wide[..., 6:] = y, x
    ops.lora_delta_(wide[..., :6], wide[..., 6:], a, b, *TABLES)
    ops.lora_delta_(y, x, a, b, *TABLES)
    torch.testing.assert_close(wide[..., :6], y)
    woven = torch.randn(24).as_strided((2, 3, 4), (12, 1, 3))  # columns side by side
    with pytest.raises(ValueError, match="contiguous"):
        ops.lora_delta_(woven, torch.randn(2, 3, 8), a, b[:4], *TABLES)


@pytest.mark.parametrize("op", WRITTEN)
def test_tensors_of_inference_mode_are_refused_before_anything_is_written(op):
    with torch.inference_mode():
        given = CALLS[op]()
        run(op, given)  # in there they may be written to
    before = given[0].clone()
    with pytest.raises(RuntimeError, match="inference_mode"):
        run(op, given)
    assert torch.equal(given[0], before)


def test_places_beyond_what_there_is():
    maps = torch.rand(3, 1, 4, 4)
    for rows in ([0, 3, 1], [0, -2, 1]):
        with pytest.raises(ValueError, match=r"mask_row\[\d\] in -1 \.\. 2"):
            attention_masks(maps, ints(*rows), 3, (8, 8))
    shares, weights, deep = torch.rand(2, 3), torch.zeros(3, 2), torch.zeros(3, 2).int()
    for early, places in (([2], [[0], [1]]), ([0], [[3], [1]]), ([0], [[-1], [0]])):
        given = ints(*early), weights, deep, None, shares, ints(*places)
        with pytest.raises(ValueError, match=r"decide_: expected (early|places)\[\d\] in 0 \.\. "):
            decide_(*given, 0.5)
        assert not weights.any()


def test_heads_of_no_features():
    with pytest.raises(ValueError, match="D > 0"):
        ops.attention(*[torch.zeros(2, 3, 0)] * 3, 2)
    with pytest.raises(ValueError, match="D > 0"):
        attention_tap(*[torch.zeros(2, 3, 0)] * 2, ints(0), 2)
