"""How much of an image's spectrum lies in its high frequencies."""

import functools

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import DTYPES, check_floats, last_contiguous, shape_error
from ._register import register
from .backends import launch, pick
from .tensors import is_real

# Largest prime factor of a side that the CPU kernel takes: it sums over a factor p in p² steps,
# which torch's library beats from here on.
LARGEST_FACTOR = 47


def kernels_for(height: int, width: int) -> tuple[str, ...]:
    """The kernels that do not lose to torch at this size."""
    slow = max(_largest_factor(height), _largest_factor(width)) > LARGEST_FACTOR
    return ("cuda",) if slow else ("cpu", "cuda")


@functools.cache
def _largest_factor(n: int) -> int:
    p = 2
    while p * p <= n:
        if n % p == 0:
            n //= p
        else:
            p += 1
    return n


def _fake(latents, cutoff=0.2, log=False):
    bins = reference.radial_bins(*latents.shape[2:])
    kind = {"dtype": torch.float32}
    return latents.new_empty(latents.shape[0], **kind), latents.new_empty(
        latents.shape[0], bins, **kind
    )


@register(fake=_fake)
def radial_amplitude(
    latents: Tensor, cutoff: float = 0.2, log: bool = False
) -> tuple[Tensor, Tensor]:
    """``profile[r] = P[r] / max P``, P[r] the mean of |FFT2(mean over C)| over integer radius r

    The radius of a frequency is ``trunc(sqrt((x - W//2)² + (y - H//2)²))`` after fftshift, in
    index units. Nothing waits for the device. No autograd.

    Args:
        latents: [B, C, H, W], last dimension contiguous.
        cutoff: First bin of the high band as a fraction of R_max = sqrt((H//2)² + (W//2)²):
            max(1, floor(cutoff · R_max)). Above 1 it is the number of that bin.
        log: Take ln(amplitude + 1e-8) in place of the amplitude.

    Returns:
        Mean of the profile from the first bin on, NaN where no bin is left [B], and the profile
        [B, trunc(R_max) + 1]; float32.
    """
    op = "radial_amplitude"
    check_floats(op, "latents", latents)
    if latents.dim() != 4 or 0 in latents.shape[1:] or not last_contiguous(latents):
        raise shape_error(op, "latents [B, C, H, W], contiguous in W", latents)
    if not (is_real(cutoff) and cutoff >= 0):
        raise ValueError(f"{op}: expected cutoff >= 0; got {cutoff!r}")
    backend = pick(op, latents, kernels_for(*latents.shape[2:]))
    if backend == "torch":
        return reference.radial_amplitude(latents.detach(), cutoff, log)
    mean, profile = _fake(latents)
    scratch = mean.new_empty(0)
    if backend == "cuda":
        # Images too large for a block's shared memory; the caller's stream keeps it alive.
        floats = _C.cuda.radial_scratch(*latents.shape[2:], latents.get_device())
        scratch = mean.new_empty(latents.shape[0] * floats)
    image = latents.data_ptr(), latents.shape, latents.stride()
    first = min(reference.first_bin(*latents.shape[2:], cutoff), profile.shape[1])
    rest = scratch.data_ptr(), first, bool(log), DTYPES[latents.dtype]
    launch("radial_amplitude", backend, latents, mean.data_ptr(), profile.data_ptr(), *image, *rest)
    return mean, profile
