"""The texts that the rows of a run read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .rows import Rows

__all__ = ["RunText", "Texts", "all_pairs"]

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Texts:
    """The texts of a run, each of one subset and one incoming sample.

    Args:
        pairs: (subset, sample) of every text for a batch size, in order.
        own: Where prompts differ by subset, embeddings (texts, tokens, D) for a batch size, and
            pooled ones (texts, D) or None; None: every subset reads those of the UNet call.
    """

    pairs: Callable[[int], Pairs]
    own: Callable[[int], tuple[Tensor, Tensor | None]] | None = None


def all_pairs(subsets: int) -> Callable[[int], Pairs]:
    """Every subset with every sample, as ``RowTable.product`` numbers them."""
    return lambda batch: [(subset, n) for subset in range(subsets) for n in range(batch)]


@dataclass(frozen=True)
class RunText:
    """Embeddings of the call in progress; ``sources`` live while their ``key`` is compared."""

    key: tuple | None = None
    sources: tuple[Tensor, ...] = ()
    text: Any = None
    text_rows: tuple[int, ...] = ()
    everyone: Rows | None = None
    own: Tensor | None = None
    pooled: Tensor | None = None
