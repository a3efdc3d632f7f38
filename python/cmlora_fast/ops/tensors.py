"""What is asked of any number, tensor or device: identity, modes, uploads, memory."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from numbers import Real

import psutil
import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = [
    "DENSE",
    "accumulator",
    "fingerprint",
    "is_dense",
    "is_real",
    "memory_in_use",
    "on_gpu",
    "plain_tensors",
    "upload",
]


DENSE = (Tensor, Parameter)  # what is no subclass, which may be packed


def is_dense(tensor: Tensor | None) -> bool:
    """A tensor of numbers where its memory is, neither packed nor elsewhere; or none."""
    return tensor is None or (type(tensor) in DENSE and not tensor.is_meta)


def is_real(value: object) -> bool:
    """A finite number. Fields of methods, which know no torch, have a check of this name too."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def upload(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values; the host does not wait until they have arrived."""
    made = torch.tensor(list(values), dtype=dtype)
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of such numbers are kept in: float32, or float64 for itself."""
    return torch.promote_types(dtype, torch.float32)


def fingerprint(*tensors: Tensor) -> tuple:
    """Changes whenever a tensor's identity, storage, dtype, device or version does.

    Only comparable while the tensors are alive: whoever keeps a fingerprint keeps the tensors.
    """
    return tuple((id(t), t.data_ptr(), _version(t), t.dtype, t.device) for t in tensors)


def plain_tensors() -> AbstractContextManager:
    """Tensors made inside may be written to in any mode; ``torch.inference_mode`` makes others."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    return stack


def on_gpu(device: torch.device) -> bool:
    """Whether work is queued there and the host had better not wait for it."""
    return device.type == "cuda"


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak of a GPU's allocator, or what the process holds now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process(os.getpid()).memory_info().rss


@functools.cache
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
