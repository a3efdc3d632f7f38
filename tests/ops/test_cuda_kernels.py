"""The CUDA kernels' own code, run on the CPU: see tests/support/host_cuda.py."""

import math

import pytest
import torch
from cmlora_fast.ops import reference

from ..support.host_cuda import guarded
from ..support.op_checks import MIXES, assert_as_good, row_weights


@pytest.mark.parametrize("shape", [(41, 37), (64, 72), (130, 66)], ids=str)
@pytest.mark.parametrize("mix", ["plain", "base row", "repeated", "no entries", "no rows"])
def test_lora_fold(cuda, mix, shape, dtype):
    mix = MIXES[mix]
    w = torch.randn(shape).to(dtype)
    a, b = torch.randn(mix.total_rank, shape[1]), torch.randn(mix.total_rank, shape[0]).T
    a, b, tables = a.to(dtype), b.to(dtype), mix.tensors()
    exact = reference.lora_fold(w.double(), a.double(), b.double(), *tables)
    twin = reference.lora_fold(w, a, b, *tables)
    for reversed_order in (False, True):
        cuda.device(reversed_order=reversed_order)
        ours = cuda.lora_fold(w, a, b, *tables)
        assert_as_good(ours, twin, exact)
    for row, entries in enumerate(mix.rows):
        assert entries or torch.equal(ours[row], w)


CACHES = {  # the cache [9 channels of 16] and the fresh features, by size and how they are cut
    "vectors": ((4, 8, 8), slice(None), slice(None)),
    "rows of odd length": ((4, 5, 7), slice(None), slice(None)),
    "a window": ((4, 5, 20), slice(1, 4), slice(3, 18)),
    "wide rows": ((4, 5, 24), slice(None), slice(8, 16)),
    "one channel": ((1, 40, 31), slice(None), slice(None)),
}


@pytest.mark.parametrize("size, h, w", CACHES.values(), ids=CACHES.keys())
def test_cache_refresh(cuda, size, h, w, dtype):
    C, H, W = size
    buffer = torch.randn(5, C + 4, H, W).to(dtype)
    fresh = torch.randn(3, C, H, W).to(dtype)[..., h, w]
    rows, expected = torch.tensor([4, 0, 3], dtype=torch.int32), buffer.clone()
    expected[[4, 0, 3], 2 : 2 + C, h, w] = fresh
    cuda.cache_refresh_(buffer[:, 2 : 2 + C, h, w], fresh, rows)
    assert torch.equal(buffer, expected)


def test_cache_refresh_of_many_elements(cuda):
    buffer, fresh = torch.zeros(2, 12, 32, 32), torch.randn(1, 9, 32, 32)
    cuda.cache_refresh_(buffer[:, :9], fresh, torch.tensor([1], dtype=torch.int32))
    assert torch.equal(buffer[1:, :9], fresh) and not buffer[0].any() and not buffer[1, 9:].any()


@pytest.mark.parametrize("scale", [None, 7.5])
@pytest.mark.parametrize(
    "size",
    [(2, 3, 2, 4, 8, 8), (2, 1, 3, 4, 9, 7), (2, 5, 1, 4, 24, 16), (2, 2, 1, 8, 3, 5)],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True], ids=["plain", "turned"])
@pytest.mark.parametrize("per_pixel", [False, True], ids=["per image", "per pixel"])
def test_combine(cuda, size, scale, turned, per_pixel, dtype):
    noise, weights = torch.randn(size).to(dtype), row_weights(size, per_pixel)
    if turned:
        noise = noise.transpose(3, 4).contiguous().transpose(3, 4)
    out = torch.zeros(noise.shape[2:] if scale else (2, *noise.shape[2:])).to(dtype)
    exact, twin, out = out.double(), out.clone(), guarded(out)
    reference.combine_(exact, noise.double(), weights, scale)
    reference.combine_(twin, noise, weights, scale)
    cuda.combine_(out, noise, weights, scale)
    assert_as_good(out, twin, exact)


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize(
    "size", [(1, 1), (64, 64), (16, 24), (24, 88), (15, 25), (2, 7), (31, 10)], ids=str
)
def test_radial_amplitude(cuda, size, log, dtype):
    latents = torch.randn(2, 4, *size).to(dtype)
    exact_mean, exact = reference.radial_amplitude(latents.double(), log=log)
    twin_mean, twin = reference.radial_amplitude(latents, log=log)
    mean, profile = cuda.radial_amplitude(latents, log=log)
    terms = spectrum_terms(latents.double(), log, exact)
    for image in zip(profile, twin, exact, strict=True):
        assert_as_good(*image, terms)
    assert_as_good(mean, twin_mean, exact_mean, terms)


def spectrum_terms(latents, log, exact):
    """What one rounding of the input, times the stages of the transform, is worth in the profile.

    The logarithm of a small amplitude is as uncertain as the amplitude is small beside the others.
    """
    step = 2.0**-23
    moved = latents * (1 + step * torch.randn_like(latents))
    change = (reference.radial_amplitude(moved, log=log)[1] - exact).abs().nan_to_num().max()
    return math.log2(2 + latents[0, 0].numel()) * change / step


def test_radial_amplitude_in_scratch_memory(cuda):
    latents = torch.randn(3, 5, 20, 40)[:, 1:, 2:18, 4:36]
    mean, profile = cuda.radial_amplitude(latents)
    cuda.device(shared_bytes=4 << 10)
    again, same = cuda.radial_amplitude(latents)
    cuda.device(reversed_order=True)
    third, _ = cuda.radial_amplitude(latents)
    assert torch.equal(mean, again) and torch.equal(profile, same) and torch.equal(mean, third)


def test_radial_amplitude_of_empty_bands_and_images(cuda):
    latents = torch.randn(3, 4, 16, 16)
    latents[1] = 0
    latents[2, 0, 3, 4] = float("nan")
    mean, _ = cuda.radial_amplitude(latents)
    assert mean[0].isfinite() and mean[1:].isnan().all()
    mean, profile = cuda.radial_amplitude(latents[:1], 80.0)
    assert mean.isnan().all() and profile.isfinite().all()


GROUPS = {  # tracked map and concept of each map in the loss
    "two concepts": ([0, 1, 2, 3], [0, 0, 1, 1]),
    "unordered, shared": ([3, 0, 1, 2, 4, 5, 0], [2, 0, 0, 1, 1, 2, 1]),
    "a concept of one": ([0, 1, 2], [0, 0, 1]),
    "one concept": ([0, 1, 2], [0, 0, 0]),
    "one map twice": ([0, 1, 1, 5], [0, 0, 1, 0]),
    "none": ([], []),
    "flat maps": ([0, 1, 2, 6], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("index, labels", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_contrastive_loss(cuda, index, labels, temperature):
    maps = torch.rand(7, 2, 5, 13)
    maps[6, 0] = 0.25  # has no direction
    maps[1, :, 0, :2] = 0  # two least pixels
    tables = [torch.tensor(table, dtype=torch.int32) for table in (index, labels)]
    exact = reference.contrastive_loss(maps.double(), *tables, temperature)
    twin = reference.contrastive_loss(maps, *tables, temperature)
    for reversed_order in (False, True):
        cuda.device(reversed_order=reversed_order)
        ours = cuda.contrastive_loss(maps, *tables, temperature)
        for got, theirs, want in zip(ours, twin, exact, strict=True):
            assert_as_good(got, theirs, want, want.abs())


TAPS = {  # rows, queries, keys, heads, D, columns
    "SD 1.5's heads": (2, 20, 77, 2, 40, [1, 5, 76]),  # a chunk of features and a part
    "nothing divides": (3, 9, 33, 3, 7, [32, 0]),
    "most keys": (1, 40, 128, 1, 64, [127, 31, 32, 96]),
    "all of them": (1, 8, 40, 1, 16, [*range(40)]),
    "twice": (1, 5, 6, 2, 5, [4, 4]),
    "smallest": (1, 1, 1, 1, 1, [0]),
}


@pytest.mark.parametrize("case", TAPS.values(), ids=TAPS.keys())
def test_attention_tap(cuda, case, dtype):
    rows, queries, keys, heads, D, columns = case
    q = torch.randn(rows, queries + 1, heads * D).to(dtype)[:, 1:]
    k = (2 * torch.randn(rows, keys, heads * D)).to(dtype)
    rest = torch.tensor(columns, dtype=torch.int32), heads, 0.3
    grad = torch.randn(rows, queries, len(columns))

    def run(op, q, k, grad):
        q = q.detach().requires_grad_()
        maps = op(q, k, *rest)
        return maps.detach(), *torch.autograd.grad(maps, q, grad)

    exact = run(reference.attention_tap, q.double(), k.double(), grad.double())
    twin = run(reference.attention_tap, q, k, grad)
    terms = 20 * heads, 20 * (grad.abs().sum() * 0.3 * k.double().abs().max())
    for reversed_order in (False, True):
        cuda.device(reversed_order=reversed_order)
        ours = run(cuda.attention_tap, q, k, grad)
        for got, theirs, want, size in zip(ours, twin, exact, terms, strict=True):
            assert_as_good(got, theirs, want, torch.as_tensor(size))
