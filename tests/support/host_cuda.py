"""The kernels of csrc/cuda compiled for the CPU, where a block's threads take turns.

They run as they are, called by the ops and through the bindings that call them on a GPU; what
stands in for CUDA is in tests/cuda_host. Inputs lie in memory full of NaN: reading past one shows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from cmlora_fast import _C, ops
from cmlora_fast.ops import backends
from torch import Tensor

from .op_checks import written

MARGIN = 64  # elements


def guarded(tensor: Tensor) -> Tensor:
    """A copy of equal strides whose memory ends lie in NaN, on 16 bytes where ``tensor`` does."""
    if not tensor.numel():
        return tensor.clone()
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    fill = float("nan") if tensor.is_floating_point() else -(2**30)
    memory = torch.full((span + 2 * MARGIN,), fill, dtype=tensor.dtype)
    start = MARGIN + tensor.data_ptr() % 16 // tensor.element_size()
    copy = memory.as_strided(tensor.shape, tensor.stride(), start)
    return copy.copy_(tensor) if 0 not in tensor.stride() else _fill_expanded(copy, tensor)


def _fill_expanded(copy: Tensor, tensor: Tensor) -> Tensor:
    first = tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())
    copy[first].copy_(tensor[first])
    return copy


class HostCuda:
    """``ops`` by the CUDA kernels, on tensors of the CPU; what an op only reads is guarded."""

    def __init__(self, module):
        self._module, self._launches = module, 0
        self.device()

    def device(self, processors: int = 132, shared_bytes: int = 227 << 10, reversed_order=False):
        """The GPU to be, and whether a block's last thread runs first."""
        self._module.device(processors, shared_bytes, reversed_order)

    def __getattr__(self, name: str) -> Callable:
        op = getattr(ops, name)

        def call(*given, **options):
            kept = zip(given, written(op), strict=False)  # defaults are left out
            given = [guarded(g) if torch.is_tensor(g) and not w else g for g, w in kept]
            before = self._launches
            result = op(*given, **options)
            assert self._launches > before, f"{name} ran its twin"
            return result

        return call

    @contextmanager
    def in_place_of_cuda(self) -> Iterator[HostCuda]:
        with pytest.MonkeyPatch.context() as patch, backends.using("cuda"):
            for name, module in list(sys.modules.items()):
                if name.startswith("cmlora_fast.ops.") and getattr(module, "_C", None) is _C:
                    patch.setattr(module, "_C", self._module)
            patch.setattr(backends, "_takes", lambda backend, tensor: True)
            patch.setattr(torch._C, "_cuda_getCurrentRawStream", self._stream, raising=False)
            yield self

    def _stream(self, device: int) -> int:
        """Every launch asks for it."""
        self._launches += 1
        return 0
