"""What the faster forms of diffusers' layers differ in, from device to device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.products import fast_on_cpu, fast_on_gpu

__all__ = ["CPU", "GPU", "Kit", "kit_of"]

# Bytes of one layer's output: memory of 32 MiB and more glibc takes from the system anew at every
# call, and page faults then cost as much as the product that fills it.
LARGEST = 16 << 20


@dataclass(frozen=True)
class Kit:
    """One description of a step serves all devices; this is what they do not share.

    Args:
        takes: Whether the forms compute what follows from a tensor; diffusers' own do otherwise.
        host: The host computes: comparing tensors waits for nothing, few rows at a time stay in the
            processor's caches, and outputs above ``LARGEST`` are made in pieces.
        joins: Every launch counts: products of one input are one product, and the bias of a
            convolution comes with the addition behind it. Weights that do not lie as the kernels
            read them are copied once per run, see ``Arranged``.
    """

    takes: Callable[[Tensor], bool]
    host: bool = False
    joins: bool = False


CPU = Kit(fast_on_cpu, host=True)
GPU = Kit(fast_on_gpu, joins=True)


def kit_of(device: torch.device) -> Kit | None:
    """None: diffusers' own forwards run there."""
    return {"cpu": CPU, "cuda": GPU}.get(device.type)
