"""The row table of one UNet batch: which adapter subset each sample carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..ops.tensors import upload

__all__ = ["Chunk", "DeepTable", "Rows", "StepRows", "expand_rows", "take_rows"]

# Rows of a tensor: all of them, a stretch, or any.
Selection = slice | Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows in segments of one subset each.

    Args:
        segments: (subset, start, stop), covering 0..count in order.
        count: Number of rows.
        text: What goes to the attention layers as ``encoder_hidden_states`` for these rows.
        text_rows: Where these rows' text keys and values stand among those of the whole run.
        subsets: Where the device alone knows them, the subset of every segment, int32 on the
            device; segments then name positions in it.
        subset_of_row: The same of every row.
    """

    segments: tuple[tuple[int, int, int], ...]
    count: int
    text: Tensor | tuple | None = None
    text_rows: Selection | None = None
    subsets: Tensor | None = None
    subset_of_row: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: int, text) -> Rows:
        """One row per incoming sample, for layers that no adapter touches."""
        return cls(((0, 0, batch),), batch, text, slice(0, batch))

    @cached_property
    def parts(self) -> tuple[tuple[int, int, Rows], ...]:
        """Every segment by itself: (start, stop, its rows)."""
        return tuple((start, stop, self.part(start, stop)) for _, start, stop in self.segments)

    def part(self, start: int, stop: int) -> Rows:
        """The rows ``start`` to ``stop``."""
        spans = [(s, max(a, start), min(b, stop)) for s, a, b in self.segments]
        segments = tuple((s, a - start, b - start) for s, a, b in spans if a < b)
        chosen = self.text_rows
        if isinstance(chosen, slice):
            chosen = slice(chosen.start + start, chosen.start + stop)
        elif chosen is not None:
            chosen = chosen[start:stop]
        text = take_rows(self.text, slice(start, stop), self.count)
        of_row = None if self.subset_of_row is None else self.subset_of_row[start:stop]
        return Rows(segments, stop - start, text, chosen, self.subsets, of_row)

    def firsts(self, alike: int) -> Rows | None:
        """The first of the rows that are the same: of one segment, and ``alike`` apart.

        None where that leaves out none, or some segment holds other than whole periods of them.
        """
        lengths = {stop - start for _, start, stop in self.segments}
        if lengths <= {alike} or any(length % alike for length in lengths):
            return None
        count, subsets = alike * len(self.segments), [subset for subset, _, _ in self.segments]
        starts = range(0, count, alike)
        segments = tuple((s, i, i + alike) for s, i in zip(subsets, starts, strict=True))
        return Rows(segments, count)

    def of_samples(self, samples: int) -> Rows:
        """Rows of a tensor of ``samples``: these; for 1, which broadcasts, these too.

        Attention processors may hand a layer part of a batch; then all must carry one subset.
        """
        if samples == self.count:
            return self
        if len(self.segments) == 1 and self.subsets is None:
            return replace(self, segments=((self.segments[0][0], 0, samples),), count=samples)
        if samples != 1:
            raise RuntimeError(f"expected {self.count} samples, as adapters differ; got {samples}")
        return self

    @property
    def text_tokens(self) -> Tensor | None:
        """The tensor that layers see; IP-Adapter pairs it with image embeddings."""
        return self.text[0] if isinstance(self.text, tuple) else self.text


def segments_of(subset_of_row: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Runs of equal subsets as (subset, start, stop)."""
    segments: list[tuple[int, int, int]] = []
    for row, subset in enumerate(subset_of_row):
        if segments and segments[-1][0] == subset:
            segments[-1] = (subset, segments[-1][1], row + 1)
        else:
            segments.append((subset, row, row + 1))
    return tuple(segments)


def selection(rows: Sequence[int], device: torch.device) -> Selection:
    """A slice where the rows are consecutive (a view, no copy), else indices on the device."""
    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[-1] + 1)
    return upload(rows, torch.long, device)


def take_rows(value, rows: Selection, batch: int):
    """Rows of every tensor in a nest of lists, tuples and dicts whose first dimension is ``batch``.

    A first dimension of 1 broadcasts and stays.
    """
    return _map(value, batch, lambda tensor: rows_of(tensor, rows))


def rows_of(tensor: Tensor, rows: Selection) -> Tensor:
    """``tensor[rows]``; int32 numbers, as the ops write them, are not widened first."""
    if isinstance(rows, Tensor) and rows.dtype is torch.int32:
        return tensor.index_select(0, rows)
    return tensor[rows]


def expand_rows(value, groups: int, batch: int):
    """Repeat the first dimension group-major: (batch, ...) -> (groups * batch, ...)."""
    if groups == 1:
        return value
    # Not ``repeat``, which would bring channels-last images into another order.
    return _map(value, batch, lambda tensor: torch.cat([tensor] * groups))


def _map(value, batch: int, change):
    if isinstance(value, Tensor):
        whole = value.dim() > 0 and value.shape[0] == batch
        return change(value) if whole else value
    if isinstance(value, dict):
        return {key: _map(item, batch, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, batch, change) for item in value)
    return value


@dataclass(frozen=True, eq=False)
class DeepTable:
    """Rows whose deep part runs, where the device alone knows which (see ``ops.decide_``).

    Args:
        table: Number of every row, its subset, and the subset of each run. int32 [3, rows].
        samples: Incoming sample of every row; that much is certain.
        runs: Stretches of equally many rows that share a subset.
    """

    table: Tensor
    samples: tuple[int, ...]
    runs: int

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, text) -> Rows:
        """For steps in which row j * batch + n is sample n with subset j, of all subsets."""
        length = len(self) // self.runs
        segments = tuple((run, run * length, (run + 1) * length) for run in range(self.runs))
        rows, subset_of_row, subsets = self.table
        return Rows(segments, len(self), text, rows, subsets[: self.runs], subset_of_row)


@dataclass(frozen=True)
class StepRows:
    """Rows of a step: ``groups`` (subset positions) times ``batch`` incoming samples, group-major.

    ``deep`` lists the rows whose deep part runs, in order, or is the device's list of them.
    """

    groups: tuple[int, ...]
    batch: int
    deep: tuple[int, ...] | DeepTable

    @property
    def count(self) -> int:
        return len(self.groups) * self.batch

    def spans(self, max_rows: int | None) -> list[tuple[int, int]]:
        """Stretches (start, stop) of at most ``max_rows`` rows that cover all of them."""
        size = self.count if max_rows is None else min(max_rows, self.count)
        return [(i, min(i + size, self.count)) for i in range(0, self.count, size)]

    def subset(self, row: int) -> int:
        return self.groups[row // self.batch]

    def text_row(self, row: int) -> int:
        """Position among one row per subset of the run and incoming sample."""
        return self.subset(row) * self.batch + row % self.batch


class Chunk:
    """A stretch of the rows of a step, and how the incoming batch spreads over it.

    ``text`` has the incoming batch's rows, or, with ``own_text``, one per row of the step.
    """

    def __init__(
        self,
        step: StepRows,
        start: int,
        stop: int,
        text,
        device: torch.device,
        own_text: bool = False,
    ):
        self.step, self.start, self.stop, self.device = step, start, stop, device
        self.count, self.total, self.groups = stop - start, step.count, len(step.groups)
        self.whole = self.count == self.total
        self._samples = selection([row % step.batch for row in range(start, stop)], device)
        mine = self.own(text) if own_text else self.spread(text)
        self.rows = self._rows(range(start, stop), mine)
        self.deep, self.deep_rows = self.rows, []
        if isinstance(step.deep, DeepTable):
            self._deep_by_table(step.deep, text)
            return
        self.deep_rows = [row for row in step.deep if start <= row < stop]
        self.deep_count = len(self.deep_rows)
        if 0 < self.deep_count < self.count:
            self._deep_of_chunk = selection([row - start for row in self.deep_rows], device)
            self.deep = self._rows(self.deep_rows, self.take_deep(self.rows.text))

    def _deep_by_table(self, deep: DeepTable, text) -> None:
        if not self.whole:
            raise AssertionError("the host cannot tell which of the deep rows lie in a chunk")
        self.deep_count, self._deep_of_chunk = len(deep), deep.table[0]
        self.deep_index = self._deep_of_chunk
        own = take_rows(text, selection(deep.samples, self.device), self.step.batch)
        self.deep = deep.rows(own)

    def _rows(self, rows: Sequence[int], text) -> Rows:
        segments = segments_of([self.step.subset(row) for row in rows])
        text_rows = selection([self.step.text_row(row) for row in rows], self.device)
        return Rows(segments, len(rows), text, text_rows)

    @cached_property
    def deep_index(self) -> Tensor:
        """The deep rows' numbers in the step, on the device."""
        return upload(self.deep_rows, torch.int32, self.device)

    def spread(self, value):
        """Tensors (batch, ...) -> (count, ...); a first dimension of 1 broadcasts and stays."""
        if self.whole:
            return expand_rows(value, self.groups, self.step.batch)
        return take_rows(value, self._samples, self.step.batch)

    def own(self, value):
        """Tensors of every row of the step -> those of this chunk's rows."""
        return take_rows(value, slice(self.start, self.stop), self.step.count)

    def take_deep(self, value):
        """Tensors (count, ...) -> (deep rows, ...); a first dimension of 1 broadcasts and stays."""
        if self.deep_count == self.count:
            return value
        return take_rows(value, self._deep_of_chunk, self.count)
