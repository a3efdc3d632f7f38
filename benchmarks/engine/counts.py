"""Counts what the engine does on the host: walks over modules, reductions, reads of a device."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from unittest import mock

import cmlora_fast
import torch
from torch import Tensor, nn

__all__ = ["counted"]

PACKAGE = os.path.dirname(os.path.abspath(cmlora_fast.__file__)) + os.sep
# Twins of the ops stand in for kernels.
OTHERS = tuple(os.path.join(PACKAGE, *path, "") for path in (("benchmarks",), ("ops", "reference")))
# Whoever called these did the walk: ``unet.device`` and ``dtype`` are walks of diffusers' own.
THROUGH = ("torch/nn/modules/module.py", "models/modeling_utils.py", "hooks/group_offloading.py")
WALKS = ("named_modules", "_named_members")
READS = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero")
REDUCTIONS = ((Tensor, "sum"), (Tensor, "dot"), (torch.linalg, "vector_norm"))


@contextmanager
def counted() -> Iterator[Counter]:
    """Counts of ``walks``, ``reads`` and ``reductions`` that files of the package make inside.

    A batch of norms is one reduction.
    """
    counts: Counter = Counter()
    with ExitStack() as stack:
        for name in WALKS:
            _patch(stack, counts, nn.Module, name, "walks", _walks)
        for name in READS:
            _patch(stack, counts, Tensor, name, "reads", _calls)
        for owner, name in (*REDUCTIONS, (torch, "_foreach_norm")):
            _patch(stack, counts, owner, name, "reductions", _calls)
        yield counts


def _patch(
    stack: ExitStack,
    counts: Counter,
    owner: object,
    name: str,
    kind: str,
    ours: Callable[[FrameType], bool],
) -> None:
    original = getattr(owner, name)

    def call(*args, **kwargs):
        counts[kind] += ours(sys._getframe(1))
        return original(*args, **kwargs)

    stack.enter_context(mock.patch.object(owner, name, call))


def _calls(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(PACKAGE) and not name.startswith(OTHERS)


def _walks(frame: FrameType) -> bool:
    """Whether a walk begins here, and for us."""
    while frame is not None and frame.f_code.co_filename.endswith(THROUGH):
        if frame.f_code.co_name in WALKS:
            return False
        frame = frame.f_back
    return frame is not None and _calls(frame)
