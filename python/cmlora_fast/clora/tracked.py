"""Which attention maps a run of CLoRA reads, as tables for its ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..methods import Row

__all__ = ["Tracked"]


@dataclass(frozen=True)
class Tracked:
    """Tracked maps, each of one token of one row, and what each is for.

    Args:
        row: Row of each tracked map. [S].
        token: Its position in the row's prompt. [S].
        mask_row: The row again where the map makes its mask, else -1. [S].
        index: Tracked map of each map in the loss; a token of two concepts counts in both. [K].
        labels: Concept of each map in the loss. [K].
    """

    row: tuple[int, ...]
    token: tuple[int, ...]
    mask_row: tuple[int, ...]
    index: tuple[int, ...]
    labels: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Tracked:
        in_loss = [
            ((j, k), c)
            for j, row in enumerate(rows)
            for c, group in enumerate(row.concept_tokens)
            for k in group
        ]
        in_mask = {(j, k) for j, row in enumerate(rows) for k in row.mask_tokens}
        maps = sorted({place for place, _ in in_loss} | in_mask)
        number = {place: s for s, place in enumerate(maps)}
        return cls(
            row=tuple(j for j, _ in maps),
            token=tuple(k for _, k in maps),
            mask_row=tuple(place[0] if place in in_mask else -1 for place in maps),
            index=tuple(number[place] for place, _ in in_loss),
            labels=tuple(c for _, c in in_loss),
        )

    @property
    def columns(self) -> tuple[int, ...]:
        """Positions that are tracked in any row, in order, each once."""
        return tuple(sorted(set(self.token)))

    @property
    def contrasts(self) -> bool:
        """Whether the loss can be other than 0: some concept has two maps, another has one."""
        repeated = len(set(self.labels)) < len(self.labels)
        return repeated and len(set(self.labels)) > 1
