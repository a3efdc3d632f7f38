"""Checksums of tensors: nothing that is written goes unseen, and nothing else is seen."""

import pytest
import torch
from cmlora_fast.adapters.contents import Contents
from torch import nn

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(4, 64), (1, 1), (3, 5), (2, 3, 3, 3), (0, 7), (33, 129), (700, 800)]


def tensors(dtype):
    return [nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False) for shape in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_single_bit(dtype):
    kept = tensors(dtype)
    contents = Contents(kept, [])
    assert contents.same()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[kept[0].element_size()]
    for tensor in kept:
        if not tensor.numel():
            continue
        bits = tensor.data.view(-1).view(integers)
        place = torch.randint(len(bits), ()).item()
        for bit in range(8 * tensor.element_size() - 1):
            bits[place] ^= 1 << bit
            assert not contents.same()
            bits[place] ^= 1 << bit
        tensor.data.view(-1)[place] *= -1
        assert not contents.same()
        tensor.data.view(-1)[place] *= -1
    assert contents.same()


@pytest.mark.parametrize("dtype", DTYPES)
def test_changes_that_sums_and_norms_do_not_see(dtype):
    kept = tensors(dtype)
    contents = Contents(kept, [])
    for tensor in kept[5:]:
        line = tensor.data.view(-1)
        old = line.clone()
        for step in (1, 2, 4, 64):  # two signs, neighbours or in equal halves of words
            line[0] *= -1
            line[step] *= -1
            assert not contents.same()
            line.copy_(old)
        line.copy_(old.roll(1))
        assert not contents.same()
        line.copy_(old.flip(0))
        assert not contents.same()
        line.mul_(-1)
        assert not contents.same()
        line.copy_(old)
        assert contents.same()


def test_tensors_that_change_places():
    one, two = (nn.Parameter(torch.randn(8, 64), requires_grad=False) for _ in range(2))
    contents = Contents([one, two], [])
    one.data, two.data = two.data, one.data
    assert not contents.same()
    one.data, two.data = two.data.clone(), one.data.clone()  # elsewhere, but as they were
    assert contents.same()


def test_another_type_or_shape():
    kept = tensors(torch.float32)
    contents = Contents(kept, [])
    for tensor in kept:
        tensor.data = tensor.data.double()
    assert not contents.same()
    for tensor in kept:
        tensor.data = tensor.data.float()
    assert contents.same()
    kept[0].data = torch.randn(9, 9)
    assert not contents.same()


def test_numbers_that_are_none_compare():
    tensor = nn.Parameter(torch.full((4, 4), float("nan")), requires_grad=False)
    assert Contents([tensor], [tensor]).same()


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_base_weights(dtype):
    kept = tensors(dtype)
    contents = Contents([], kept)
    assert contents.same()
    kept[-1].data += 0.01 * torch.randn_like(kept[-1])
    assert not contents.same()


def test_other_layouts_and_types():
    """Strided and channels-last tensors; bytes, which have no norm."""
    strided = torch.randn(8, 8)[:, ::2]
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    numbers = torch.randint(255, (5, 5), dtype=torch.uint8)
    contents = Contents([strided, images, numbers], [strided, images, numbers])
    assert contents.same()
    for tensor in (strided, images, numbers):
        tensor[0, 1] += 1
        assert not contents.same()
        contents = Contents([strided, images, numbers], [numbers])


def test_tensors_without_numbers_are_never_the_same():
    assert not Contents([torch.empty(2, 2, device="meta")], []).same()


def test_nothing_is_the_same():
    assert Contents([], []).same()
