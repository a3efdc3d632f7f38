"""The row table of a UNet batch, and its rows as layers see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.tensors import upload

__all__ = ["Column", "RowTable", "Rows", "pick", "take"]

# Numbers on the host, or int32 where the device alone knows them.
Column = tuple[int, ...] | Tensor


@dataclass(frozen=True, eq=False)
class RowTable:
    """Rows of a UNet batch, each with a sample, adapters, text and features of its own.

    Args:
        sample: Incoming sample that the row computes; the rows of a sample are summed.
        subset: Adapters, by position among the subsets of the run.
        text: Place among the texts of the run.
        slot: Place in the feature cache.
        slots: Places that the cache has.
        deep: Numbers of the rows whose deep part runs, in order; where the device alone knows
            which, their table, see ``of_memory``.
        whole: Whether these are all rows of the step.
        share: Weight of each sample's j-th prediction, see ``by_sample``, as ``ops.combine_`` takes
            them: float32 (J, batch) or (J, batch, H, W). None: predictions stay as they are.
        memory: What a table of tensors reads, else None.
        runs: Its stretches of equally many rows of one subset.
    """

    sample: tuple[int, ...]
    subset: Column
    text: Column
    slot: Column
    slots: int
    deep: tuple[int, ...] | RowTable
    whole: bool = True
    share: Tensor | None = None
    memory: Tensor | None = None
    runs: int = 0

    @classmethod
    def product(cls, subsets: int, batch: int, **given: Any) -> RowTable:
        """Every sample with every subset: row j * batch + n is sample n with subset j."""
        rows, samples = tuple(range(subsets * batch)), tuple(range(batch)) * subsets
        subset = tuple(j for j in range(subsets) for _ in range(batch))
        return cls(samples, subset, rows, rows, len(rows), **{"deep": rows, **given})

    @classmethod
    def of_memory(cls, memory: Tensor, sample: tuple[int, ...], runs: int) -> RowTable:
        """Deep rows as ``ops.decide_`` writes them to int32 [3, rows]: numbers, subsets, runs'.

        For a product of all subsets, where a row's number is its text and its slot. Samples are
        certain.
        """
        numbers, subset, _ = memory
        return cls(sample, subset, numbers, numbers, 0, (), whole=False, memory=memory, runs=runs)

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, rows: slice) -> RowTable:
        start, stop, _ = rows.indices(len(self))
        if isinstance(self.deep, RowTable):
            raise AssertionError("the host cannot tell which of the deep rows lie in a chunk")
        deep = tuple(row - start for row in self.deep if start <= row < stop)
        return self.only(range(start, stop), deep)

    def only(self, rows: Sequence[int], deep: tuple[int, ...]) -> RowTable:
        """Some of the rows, of which ``deep`` are; without their shares."""
        columns = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("sample", "subset", "text", "slot")
        }
        return replace(self, **columns, deep=deep, whole=False, share=None)

    @cached_property
    def key(self) -> tuple:
        """Equal for tables that run alike: without shares, and without what the device decides."""
        deep = self.deep
        if isinstance(deep, RowTable):
            deep = ("by table", deep.sample, deep.runs)
        return self.sample, self.subset, self.text, self.slot, self.slots, deep

    @cached_property
    def deep_rows(self) -> RowTable:
        """The table of the rows whose deep part runs."""
        if isinstance(self.deep, RowTable):
            return self.deep
        if len(self.deep) == len(self):
            return self
        return self.only(self.deep, tuple(range(len(self.deep))))

    @cached_property
    def by_sample(self) -> tuple[tuple[int, ...], ...]:
        """[J][batch]: every sample's j-th row; where one has fewer, its first again."""
        rows: list[list[int]] = [[] for _ in range(max(self.sample) + 1)]
        for row, sample in enumerate(self.sample):
            rows[sample].append(row)
        most = max(map(len, rows))
        return tuple(zip(*(mine + mine[:1] * (most - len(mine)) for mine in rows), strict=True))

    def samples_of(self, value: Tensor) -> Tensor:
        """Something of every row, (rows, ...), by sample: (J, batch, ...)."""
        places = self.by_sample
        chosen = take(value, tuple(row for line in places for row in line), len(self))
        return chosen.view(len(places), len(places[0]), *value.shape[1:])

    def shares(self, of_row: Sequence[float]) -> list[list[float]]:
        """``share`` for the weight of every row; 0 where a row stands again."""
        first = self.by_sample[0]
        return [
            [0.0 if j and row == first[n] else of_row[row] for n, row in enumerate(line)]
            for j, line in enumerate(self.by_sample)
        ]

    def combined(self, noise: Tensor) -> Tensor:
        """Predictions of all rows, (rows, C, H, W) -> of the incoming samples, (batch, C, H, W)."""
        by_sample = self.samples_of(noise)
        if self.share is None:
            return by_sample[0]
        out = noise.new_empty(1, *by_sample.shape[1:])
        ops.combine_(out, by_sample[None], self.share)
        return out[0]


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows in segments of one subset each.

    Args:
        segments: (subset, start, stop), covering 0..count in order.
        count: Number of rows.
        text: What goes to the attention layers as ``encoder_hidden_states`` for these rows.
        text_rows: Where these rows' text keys and values stand among those of the whole run.
        samples: Incoming sample of every row, where that is of use.
        subsets: Where the device alone knows them, the subset of every segment, int32 on the
            device; segments then name positions in it.
        subset_of_row: The same of every row.
        table: Of which these are all the rows.
    """

    segments: tuple[tuple[int, int, int], ...]
    count: int
    text: Tensor | tuple | None = None
    text_rows: Column | None = None
    samples: tuple[int, ...] | None = None
    subsets: Tensor | None = None
    subset_of_row: Tensor | None = None
    table: RowTable | None = None

    @classmethod
    def of_batch(cls, text: Any, text_rows: tuple[int, ...]) -> Rows:
        """One row per incoming sample, for layers that no adapter touches."""
        batch = len(text_rows)
        return cls(((0, 0, batch),), batch, text, text_rows, tuple(range(batch)))

    @classmethod
    def of(cls, table: RowTable, text: Any) -> Rows:
        """All rows of a table; ``text`` has theirs."""
        count, known = len(table), {"samples": table.sample, "table": table}
        if table.memory is None:
            return cls(segments_of(table.subset), count, text, table.text, **known)
        length = count // table.runs
        segments = tuple((run, run * length, (run + 1) * length) for run in range(table.runs))
        known |= {"subsets": table.memory[2, : table.runs], "subset_of_row": table.subset}
        return cls(segments, count, text, table.text, **known)

    @cached_property
    def deep(self) -> Rows:
        """Those whose deep part runs."""
        table = self.table
        if table.deep_rows is table:
            return self
        numbers = table.deep
        if isinstance(numbers, RowTable):  # any row of a sample has its text
            numbers = tuple(table.by_sample[0][sample] for sample in numbers.sample)
        return Rows.of(table.deep_rows, take(self.text, numbers, self.count))

    def take_deep(self, value: Any) -> Any:
        """Tensors (count, ...) -> (deep rows, ...); a first dimension of 1 broadcasts and stays."""
        deep = self.table.deep
        return take(value, deep.slot if isinstance(deep, RowTable) else deep, self.count)

    def spread(self, value: Any, batch: int) -> Any:
        """Tensors of the incoming batch -> (count, ...); a first dimension of 1 stays."""
        return take(value, self.samples, batch)

    @cached_property
    def parts(self) -> tuple[tuple[int, int, Rows], ...]:
        """Every segment by itself: (start, stop, its rows)."""
        return tuple((start, stop, self.part(start, stop)) for _, start, stop in self.segments)

    def part(self, start: int, stop: int) -> Rows:
        """The rows ``start`` to ``stop``."""
        spans = [(s, max(a, start), min(b, stop)) for s, a, b in self.segments]
        segments = tuple((s, a - start, b - start) for s, a, b in spans if a < b)
        text = take(self.text, tuple(range(start, stop)), self.count)
        columns = (self.text_rows, self.samples, self.subset_of_row)
        numbers, samples, of_row = (None if c is None else c[start:stop] for c in columns)
        return Rows(segments, stop - start, text, numbers, samples, self.subsets, of_row)

    def firsts(self, period: int) -> Rows | None:
        """The first of the rows that are the same: of one segment and of samples ``period`` apart.

        None where that leaves out none, or a segment holds other than whole rounds of them.
        """
        lengths = {stop - start for _, start, stop in self.segments}
        if lengths <= {period} or any(length % period for length in lengths):
            return None
        for _, start, stop in self.segments:
            alike = [sample % period for sample in self.samples[start:stop]]
            if alike[period:] != alike[:-period]:
                return None
        starts = range(0, period * len(self.segments), period)
        segments = zip((subset for subset, _, _ in self.segments), starts, strict=True)
        return Rows(tuple((s, i, i + period) for s, i in segments), starts.stop)

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

    @cached_property
    def slots(self) -> Tensor:
        """Places of the rows in the feature cache, int32 on the device."""
        slot = self.table.slot
        return (
            slot if isinstance(slot, Tensor) else upload(slot, torch.int32, self.text_tokens.device)
        )


def segments_of(subset_of_row: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Runs of equal subsets as (subset, start, stop)."""
    segments: list[tuple[int, int, int]] = []
    for row, subset in enumerate(subset_of_row):
        if segments and segments[-1][0] == subset:
            segments[-1] = (subset, segments[-1][1], row + 1)
        else:
            segments.append((subset, row, row + 1))
    return tuple(segments)


def pick(tensor: Tensor, rows: Column) -> Tensor:
    """``tensor[rows]``: a view where they follow one another, else a copy in the same layout."""
    if isinstance(rows, Tensor):
        return tensor.index_select(0, rows)
    whole = 0, len(tensor)
    pieces = [tensor if span == whole else tensor[slice(*span)] for span in _stretches(rows)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def take(value: Any, rows: Column, count: int) -> Any:
    """``pick`` of every tensor in a nest of lists, tuples and dicts, of ``count`` rows.

    Other first dimensions broadcast and stay.
    """
    if isinstance(value, Tensor):
        return pick(value, rows) if value.dim() > 0 and value.shape[0] == count else value
    if isinstance(value, dict):
        return {key: take(item, rows, count) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take(item, rows, count) for item in value)
    return value


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers that follow one another, as (start, stop)."""
    stretches: list[tuple[int, int]] = []
    for number in numbers:
        if stretches and stretches[-1][1] == number:
            stretches[-1] = (stretches[-1][0], number + 1)
        else:
            stretches.append((number, number + 1))
    return stretches
