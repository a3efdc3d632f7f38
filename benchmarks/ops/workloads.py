"""Layer shapes of real UNets, adapter mixes, and what there is to say of an op's cases."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Cases = Iterator[tuple[str, Callable[[], tuple]]]


@dataclass(frozen=True)
class OpCases:
    """What an op is measured and tested with.

    Args:
        cases: Names, and makers of arguments on torch's default device, for an element type and a
            size: "tiny" is for tests, where one shape divides nothing; "quick" or "full".
        kernels: Backends that have one.
        moved: Bytes that a call with these arguments must read and write.
        flops: Floating-point operations of its matrix products, where it is made of them.
    """

    cases: Callable[[torch.dtype, str], Cases]
    kernels: tuple[str, ...]
    moved: Callable[..., int]
    flops: Callable[..., int] | None = None


# Rows x tokens of a batch, K, N.
LAYERS = {
    "SD 1.5 64x64": (8192, 320, 320),
    "SD 1.5 32x32": (2048, 640, 640),
    "SD 1.5 16x16": (1024, 1280, 1280),
    "SD 1.5 feed-forward": (1024, 1280, 10240),
    "SD 1.5 text keys": (10 * 77, 768, 320),
    "SDXL 64x64": (8192, 640, 640),
    "SDXL 32x32": (2048, 1280, 1280),
    "SDXL text keys": (10 * 77, 2048, 1280),
}
RANKS = (4, 8, 16, 32, 64, 128)
QUICK_RANKS = (4, 32)
ADAPTERS = (2, 5, 16)
TINY_ROWS = [[0, 1, 2], [2], [], [1, 0]]  # one has no adapter


def row_table(ranks: list[int], rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """slots, row_ptr, row_slot, row_scale for rows that take the listed adapters at scale 0.8."""
    entries = [slot for row in rows for slot in row]
    return (
        _offsets(ranks),
        _offsets([len(row) for row in rows]),
        torch.tensor(entries, dtype=torch.int32),
        torch.full((len(entries),), 0.8),
    )


def _offsets(sizes: list[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)


def both_moved(written: Tensor, read: Tensor, *rest) -> int:
    """Bytes of an op that reads one tensor and writes another."""
    return written.nbytes + read.nbytes
