"""Adapters packed once, as the engine keeps them, compute what the op does."""

import pytest
import torch
from cmlora_fast import _C, ops
from cmlora_fast.ops import backends
from cmlora_fast.ops.lora_delta import PackedAdapters

from ..support.op_checks import MIXES, lora_inputs


def packed_call(y, x, a, b, slots, *entries):
    packed = PackedAdapters(a, b, slots)
    packed.lora_delta_(y, x, *entries)
    return packed


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_packed_adapters_agree_bit_for_bit(mix, dtype, isa):
    y, *rest = lora_inputs(mix, (29, 37, 70), dtype)
    ours, packed = y.clone(), y
    ops.lora_delta_(ours, *rest)
    packed_call(packed, *rest)
    assert torch.equal(packed, ours)


@pytest.mark.parametrize("name", ["a", "b", "slots"])
def test_packed_adapters_follow_their_slabs(name):
    y, x, a, b, slots, *entries = lora_inputs(MIXES["plain"], (5, 24, 20))
    packed = packed_call(y.clone(), x, a, b, slots, *entries)
    if name == "slots":
        packed.slots[1] += 2
    else:
        getattr(packed, name).mul_(2)
    ours, expected = y.clone(), y.clone()
    packed.lora_delta_(ours, x, *entries)
    ops.lora_delta_(expected, x, packed.a, packed.b, packed.slots, *entries)
    assert torch.equal(ours, expected)


def test_packed_adapters_follow_the_instruction_set():
    y, *rest = lora_inputs(MIXES["plain"], (5, 24, 20))
    packed = packed_call(y.clone(), *rest)
    for isa in ("scalar", backends.ISAS[_C.best_isa()]):
        with ops.force(isa=isa):
            ours, expected = y.clone(), y.clone()
            packed.lora_delta_(ours, rest[0], *rest[4:])
            ops.lora_delta_(expected, *rest)
        assert torch.equal(ours, expected)


def test_packed_adapters_made_in_inference_mode():
    with torch.inference_mode():
        y, *rest = lora_inputs(MIXES["plain"], (5, 24, 20))
        packed = packed_call(y.clone(), *rest)
        rest[1].mul_(3)
        ours = y.clone()
        packed.lora_delta_(ours, rest[0], *rest[4:])
        ops.lora_delta_(y, *rest)
        assert torch.equal(ours, y)
