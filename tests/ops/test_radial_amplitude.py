import math

import numpy as np
import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import assert_as_good, with_serial_pool

SIZES = [  # H, W
    (1, 1),  # the smallest
    (64, 64),  # SD 1.5
    (128, 96),  # not square
    (24, 88),  # factors 2, 3 and 11
    (15, 25),  # odd
    (2, 7),  # one even, one prime
    (31, 64),  # a large prime
    (74, 53),  # primes so large that torch is faster
]


def by_hand(image, log):
    """Profile of one image [H, W] in numpy, as the definition says it."""
    H, W = image.shape
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(image)))
    amplitude = np.log(amplitude + 1e-8) if log else amplitude
    y, x = np.indices((H, W))
    radius = np.sqrt((x - W // 2) ** 2 + (y - H // 2) ** 2).astype(int)
    profile = np.array([amplitude[radius == r].mean() for r in range(radius.max() + 1)])
    return profile / profile.max()


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_numpy_and_reference(size, log, dtype, isa):
    latents = torch.randn(3, 4, *size).to(dtype)
    mean, profile = ops.radial_amplitude(latents, log=log)
    exact_mean, exact = reference.radial_amplitude(latents.double(), log=log)
    twin_mean, twin = reference.radial_amplitude(latents, log=log)
    for image in range(3):
        expected = by_hand(latents[image].double().mean(0).numpy(), log)
        np.testing.assert_allclose(exact[image], expected, rtol=1e-9, atol=1e-12)
    assert_as_good(profile, twin, exact)
    assert_as_good(mean, twin_mean, exact_mean)


@pytest.mark.parametrize(
    "size, cutoff, first",
    [
        ((64, 64), 0.2, 9),
        ((128, 96), 0.2, 16),
        ((128, 128), 0.2, 18),
        ((32, 32), 0.2, 4),
        ((8, 8), 0.0, 1),  # bin 0, the mean of the image, never counts
        ((128, 128), 80.0, 80),  # the released literal
        ((32, 32), 1.0, 22),  # still a fraction: the outermost bin
    ],
    ids=str,
)
def test_band(size, cutoff, first):
    mean, profile = ops.radial_amplitude(torch.randn(2, 4, *size), cutoff)
    assert reference.first_bin(*size, cutoff) == first
    torch.testing.assert_close(mean, profile[:, first:].mean(1))


def test_empty_band_is_nan(isa):
    mean, profile = ops.radial_amplitude(torch.randn(2, 4, 64, 64), 80.0)  # 46 bins
    assert mean.isnan().all() and profile.isfinite().all()


def test_one_frequency_lands_in_its_bin(isa):
    x, y = torch.meshgrid(torch.arange(48), torch.arange(32), indexing="ij")
    wave = torch.cos(2 * math.pi * (3 * x / 48 + 4 * y / 32))
    _, profile = ops.radial_amplitude(wave.expand(1, 4, -1, -1))
    assert profile[0].argmax() == 5 and profile[0, 5] == 1
    assert profile[0].topk(2).values[1] < 1e-4


@pytest.mark.parametrize("value", [1e4, 1e-7], ids=str)
def test_extreme_values(value, isa):
    latents = torch.randn(2, 4, 24, 40) * value
    exact = reference.radial_amplitude(latents.double())[1]
    assert_as_good(ops.radial_amplitude(latents)[1], reference.radial_amplitude(latents)[1], exact)


def test_nan_and_zero_stay_in_their_image(isa):
    latents = torch.randn(4, 4, 16, 16)
    expected, _ = ops.radial_amplitude(latents)
    latents[1, 2, 3, 4] = float("nan")
    latents[2] = 0
    mean, _ = ops.radial_amplitude(latents)
    assert mean[1:3].isnan().all()
    assert torch.equal(mean[[0, 3]], expected[[0, 3]])


def test_strided_latents(dtype, isa):
    buffer = torch.randn(2, 6, 20, 50).to(dtype)
    view = buffer[:, 1:5, 2:18, 5:37]
    for ours, copied in zip(
        ops.radial_amplitude(view), ops.radial_amplitude(view.contiguous()), strict=True
    ):
        assert torch.equal(ours, copied)
    one = buffer[:1, :4].expand(3, -1, -1, -1)
    assert ops.radial_amplitude(one)[0].unique().numel() == 1


def test_repeatable_and_independent_of_neighbours(isa):
    latents = torch.randn(9, 4, 64, 64)
    mean, profile = ops.radial_amplitude(latents)
    assert torch.equal(ops.radial_amplitude(latents)[1], profile)
    assert torch.equal(with_serial_pool(lambda: ops.radial_amplitude(latents)[1]), profile)
    assert torch.equal(ops.radial_amplitude(latents[4:5])[0], mean[4:5])


def test_many_sizes(isa):
    for size in range(2, 42):  # more than the plans that are kept
        latents = torch.randn(1, 1, size, 5)
        twin = reference.radial_amplitude(latents)[1]
        torch.testing.assert_close(ops.radial_amplitude(latents)[1], twin, rtol=1e-4, atol=1e-5)


def test_no_images():
    mean, profile = ops.radial_amplitude(torch.empty(0, 4, 16, 16))
    assert mean.shape == (0,) and profile.shape == (0, 12)


def test_registration():
    opcheck(ops.radial_amplitude.op, (torch.randn(2, 4, 16, 12), 0.3, True))


def test_compiles_without_graph_break():
    latents = torch.randn(2, 4, 16, 12)
    compiled = torch.compile(ops.radial_amplitude, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(latents)[0], ops.radial_amplitude(latents)[0])


def test_no_bin_is_left_from_any_number_on():
    for cutoff in (12.0, 1e30):
        assert ops.radial_amplitude(torch.randn(1, 4, 16, 16), cutoff)[0].isnan().all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"radial_amplitude: expected latents \[B, C, H, W\]"):
        ops.radial_amplitude(torch.randn(4, 16, 16))
    with pytest.raises(ValueError, match=r"radial_amplitude: expected latents .* strides"):
        ops.radial_amplitude(torch.randn(1, 4, 16, 16).mT)
    with pytest.raises(TypeError, match=r"radial_amplitude: .* of one dtype.*float64"):
        ops.radial_amplitude(torch.randn(1, 4, 16, 16).double())
    for cutoff in (-0.1, float("nan"), float("inf"), "0.2", None):
        with pytest.raises(ValueError, match=r"radial_amplitude: expected cutoff >= 0; got"):
            ops.radial_amplitude(torch.randn(1, 4, 16, 16), cutoff)
