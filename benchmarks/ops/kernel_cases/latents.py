"""Cases of what looks at latents, features and predictions."""

from functools import partial

import torch
from torch import Tensor

from ..workloads import Cases, OpCases, both_moved


def radial_amplitude_cases(dtype: torch.dtype, size: str) -> Cases:
    squares = ((1, 64, 64), (1, 128, 128))
    others = ((1, 32, 32), (4, 96, 64), (1, 104, 88), (1, 127, 113))
    sizes = {"tiny": ((2, 16, 24), (2, 31, 10)), "quick": squares, "full": (*squares, *others)}
    for batch, height, width in sizes[size]:
        shape = (batch, 4, height, width)
        yield " x ".join(map(str, shape)), lambda shape=shape: (torch.randn(shape).to(dtype),)


def cache_refresh_cases(dtype: torch.dtype, size: str) -> Cases:
    tiny, usual = ((4, 9, 8, 8), (4, 9, 5, 7)), ((640, 960, 64, 64), (640, 960, 32, 32))
    for channels, width, H, W in tiny if size == "tiny" else usual:
        name = f"2 rows of {channels} x {H} x {W}"
        yield name, partial(refresh_inputs, channels, width, H, W, dtype)


def refresh_inputs(channels, width, H, W, dtype) -> tuple[Tensor, ...]:
    """A slice of the concat buffer, two fresh rows and where they belong."""
    buffer = torch.zeros(10, width, H, W, dtype=dtype)
    fresh = torch.randn(2, channels, H, W).to(dtype)
    return buffer[:, :channels], fresh, torch.tensor([1, 4], dtype=torch.int32)


def combine_cases(dtype: torch.dtype, size: str) -> Cases:
    if size == "tiny":
        # Nothing divides a vector; vectors; planes that do not, though all channels together do.
        for shape in ((2, 3, 2, 4, 9, 7), (2, 5, 1, 4, 24, 16), (2, 2, 1, 8, 3, 5)):
            for scale in (None, 7.5):
                name = f"{' x '.join(map(str, shape))}, {'guided' if scale else 'parts'}"
                yield name, partial(combine_inputs, shape, False, scale, dtype)
                yield f"{name}, per pixel", partial(combine_inputs, shape, True, scale, dtype)
        return
    for rows, images, side in ((5, 1, 64), (5, 4, 64), (3, 1, 128)):
        name, shape = (
            f"{rows} rows, {images} x 4 x {side} x {side}",
            (2, rows, images, 4, side, side),
        )
        yield name, partial(combine_inputs, shape, False, 7.5, dtype)


def combine_inputs(shape, per_pixel, scale, dtype) -> tuple:
    """out, noise, weights and a guidance scale."""
    noise = torch.randn(shape).to(dtype)
    pixels = shape[4:] if per_pixel else ()
    out = torch.empty_like(noise[:, 0] if scale is None else noise[0, 0])
    return out, noise, torch.rand(*shape[1:3], *pixels), scale


def decide_cases(dtype: torch.dtype, size: str) -> Cases:
    for B, J, F in ((1, 3, 1), (3, 5, 2)):
        yield f"{B} images, {J} subsets", partial(decide_inputs, B, J, F, 2 * B)


def decide_inputs(B, J, F, batch) -> tuple:
    """early, weights, deep, reading, shares, places and the threshold."""
    made = torch.ones(B, dtype=torch.int32), torch.zeros(J, batch), torch.zeros(3, F * batch).int()
    places = torch.stack([torch.arange(F), torch.arange(F) + J - F]).int()
    return *made, torch.rand(B), torch.rand(2, J), places, 0.5


CASES = {
    "radial_amplitude": OpCases(
        radial_amplitude_cases, ("cpu", "cuda"), lambda latents: latents.nbytes
    ),
    "cache_refresh_": OpCases(
        cache_refresh_cases, ("cpu", "cuda", "triton"), lambda _, fresh, rows: 2 * fresh.nbytes
    ),
    "combine_": OpCases(combine_cases, ("cpu", "cuda", "triton"), both_moved),
    "decide_": OpCases(decide_cases, ("cuda",), lambda early, weights, *rest: weights.nbytes),
}
