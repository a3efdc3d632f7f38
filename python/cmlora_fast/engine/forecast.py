"""The run of a method whose predictions are forecast: UNet calls are skipped, or rows of them.

What is carried on is x₀, which changes less from step to step than predictions do: along the line
through its last two values, with a limit, as lines that are followed far explode.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..adapters import LoadedAdapters
from ..ops.tensors import upload
from ..schedule import FEWEST_STEPS
from ..unet.inputs import UNetInputs
from ..unet.rows import RowTable, pick
from .history import RULES, Cell, History
from .hostwalk import Chosen
from .levels import Level, noise_levels
from .planned import PlannedRun
from .run import Clock
from .settings import BASE

__all__ = ["ForecastRun"]


class ForecastRun(PlannedRun):
    """Runs the rows that the plan says are real, and forecasts the others from their x₀."""

    def begin(self, inputs: UNetInputs, clock: Clock) -> None:
        super().begin(inputs, clock)
        self.summary.cache = {"used": True, "reason": f"{self._kind}: as the method schedules"}
        if not clock.lone and self._kind == "forecast" and clock.steps < FEWEST_STEPS:
            warnings.warn(
                f"{clock.steps} steps with cache='forecast': below {FEWEST_STEPS} nothing is "
                "skipped; use more steps or cache='features'",
                stacklevel=2,
            )

    def adapt(self, adapters: LoadedAdapters, inputs: UNetInputs) -> None:
        super().adapt(adapters, inputs)
        self._histories.clear()  # of other weights

    def control(self, call: functools.partial) -> Any:
        """The last answer, where the UNet rests as well."""
        shapes = (x.shape for x in tree_leaves((call.args, call.keywords)) if isinstance(x, Tensor))
        key = self.call.border.guided(), *shapes
        place, self._asked = self._asked, self._asked + 1
        known, answer = self._answers.get(place, (None, None))
        if known != key or not self._rests:
            answer = call()
            self._answers[place] = key, answer
        return answer

    @property
    def _rests(self) -> bool:
        """Whether the next UNet call will not run it, however many guidance parts come."""
        clock = self.clock
        mine = [h for (_, k), h in self._histories.items() if k == clock.calls % clock.order]
        known = bool(mine) and all(history.complete for history in mine)
        moved = self.call.executor.watch.moved()
        return known and not moved and self._walk.rests(clock.calls)

    def after_step(self, latents: Tensor) -> None:
        super().after_step(latents)
        self._asked = 0

    def _lay_out(self, inputs: UNetInputs) -> None:
        super()._lay_out(inputs)
        self._kind, self._cut = self.settings.planned.cache, None
        calls, scheduler = self.clock.expected, self.call.border.scheduler
        self._levels = noise_levels(scheduler, calls) if calls else ()
        self._histories: dict[tuple[int, int], History] = {}
        self._answers: dict[int, tuple[Any, Any]] = {}  # of ControlNet calls within a step
        self._asked = 0

    def close(self) -> None:
        self._histories, self._answers = {}, {}
        super().close()

    def step(
        self, plain: Callable[..., Any], inputs: UNetInputs, whole: Callable[[], Any], turn: int
    ) -> Any:
        self.recorder.begin_step()
        self._batch, images = inputs.batch, self.images(inputs.batch)
        decide = self._on_host if self._device is None else self._on_device
        table, chosen = decide(self._batch, images, inputs.sample.device, None, turn)
        if self._levels:
            run = self._relayed if self._kind == "relay" else self._whole_or_none
            real = self._walk.real_rows(self.clock.calls, table, images)
            noise, real = run(plain, inputs, table, real, turn)
        else:
            self.fade(inputs)
            noise = self.call.executor.step(plain, inputs, table, None)
            real = tuple(range(len(table)))
        self._note(table, real, chosen, images, inputs.timestep)
        return noise

    def _whole_or_none(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        table: RowTable,
        real: tuple[int, ...],
        turn: int,
    ) -> tuple[Tensor, tuple[int, ...]]:
        """A line per sample, of what its rows come to."""
        level, sample, rule = self._level, self._latents(inputs), RULES["forecast"]
        time = rule.time(level)
        history, cells = self._history(1, sample, turn), [(0, n) for n in range(self._batch)]
        if real or not all(map(history.knows, cells)):
            self.fade(inputs)
            noise = self.call.executor.step(plain, inputs, table, None)
            history.take(cells, level.clean(sample, noise), time)
            return noise, tuple(range(len(table)))
        reach = [[history.reach(cell, time, rule.farthest) for cell in cells]]
        reach = upload(reach, torch.float32, sample.device)
        blended = history.blend(torch.ones_like(reach), reach)
        return level.prediction(sample, blended), ()

    def _relayed(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        table: RowTable,
        real: tuple[int, ...],
        turn: int,
    ) -> tuple[Tensor, tuple[int, ...]]:
        """A line per row."""
        level, sample, rule = self._level, self._latents(inputs), RULES["relay"]
        time, lines = rule.time(level), table.by_sample
        history = self._history(len(lines), sample, turn)
        cell_of: dict[int, Cell] = {}
        for j, line in enumerate(lines):
            for n, row in enumerate(line):
                cell_of.setdefault(row, (j, n))
        unknown = (row for row, cell in cell_of.items() if not history.knows(cell))
        real = tuple(sorted({*real, *unknown}))
        noise = self._predictions(plain, inputs, table, real)
        clean = level.clean(pick(sample, tuple(table.sample[row] for row in real)), noise)
        history.take([cell_of[row] for row in real], clean, time)
        if len(real) == len(table):
            return table.combined(noise), real
        reach = [
            [  # a row that stands again has no weight
                history.reach((j, n), time, rule.farthest) if cell_of[row] == (j, n) else 0.0
                for n, row in enumerate(line)
            ]
            for j, line in enumerate(lines)
        ]
        blended = history.blend(table.share, upload(reach, torch.float32, sample.device))
        return level.prediction(sample, blended), real

    def _predictions(
        self, plain: Callable[..., Any], inputs: UNetInputs, table: RowTable, rows: tuple[int, ...]
    ) -> Tensor:
        """(rows, C, H, W); where steps are recorded line by line, as one pass then does for all."""
        executor = self.call.executor
        self.fade(inputs)

        def only(rows: tuple[int, ...]) -> RowTable:
            return replace(table.only(rows, tuple(range(len(rows)))), whole=True)

        if not self.execution.static:
            return executor.run(plain, inputs, only(rows), None)
        each: list[list[int]] = [[] for _ in range(self._batch)]
        for row in rows:
            each[table.sample[row]].append(row)
        found: dict[int, Tensor] = {}
        for j in range(max(map(len, each))):
            line = tuple(mine[j] if j < len(mine) else mine[0] for mine in each)
            found |= zip(line, executor.step(plain, inputs, only(line), None), strict=True)
        return torch.stack([found[row] for row in rows])

    @property
    def _level(self) -> Level:
        return self._levels[min(self.clock.calls, len(self._levels) - 1)]

    def _latents(self, inputs: UNetInputs) -> Tensor:
        """What is denoised, without masks and pictures beside it."""
        return inputs.sample[:, : self.call.border.unet.config.out_channels]

    def _history(self, lines: int, sample: Tensor, turn: int) -> History:
        """Of this guidance part and evaluation of a step; that of another batch is of no use."""
        key = turn, self.clock.calls % self.clock.order
        history = self._histories.get(key)
        if history is None or history.shape != (lines, *sample.shape):
            history = self._histories[key] = History(lines, sample)
        return history

    def _note(
        self,
        table: RowTable,
        real: tuple[int, ...],
        chosen: Sequence[Chosen] | None,
        images: int,
        timestep: Tensor | float,
    ) -> None:
        call, walk, means = self.clock.calls, self._walk, None
        if table.share is not None and table.share.dim() == 4:
            means = table.share.mean((2, 3))
        table = replace(table, deep=real)

        def find() -> list[dict[str, Any]]:
            found = walk.records(call, table, chosen or walk.choose(call, images, False), means)
            for told in found:
                names = (name for name in told["weights"] if name != BASE)
                told["forecast"] = tuple(n for n in names if n not in told["refreshed"])
            return found

        self.recorder.note(len(real), 0, timestep, find)
