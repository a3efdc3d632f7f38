"""What the runs of all methods have in common: the call, its clock, how it executes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Execution, LoadedAdapters
from ..adapters.text import TextAdapters
from ..ops.backends import backends
from ..ops.tensors import on_gpu
from ..unet.executor import Executor
from ..unet.graphs import why_not_recorded
from ..unet.inputs import UNetInputs
from .border import Border
from .checks import check_names, check_scheduled
from .devicewalk import DeviceWalks
from .fading import Fading
from .recorder import Recorder
from .settings import Settings
from .summary import Summary

__all__ = ["Call", "Clock", "Run"]


@dataclass
class Clock:
    """How far a call is.

    Args:
        expected: UNet calls that the scheduler will answer; 0 for a UNet call that belongs to no
            schedule, which is a run of one step.
        order: Evaluations per step of the scheduler.
        calls: UNet calls that it has answered.
    """

    expected: int = 0
    order: int = 1
    calls: int = 0

    @property
    def steps(self) -> int:
        """T, steps of the plan."""
        return max(1, -(-self.expected // self.order))

    @property
    def step(self) -> int:
        """Plan step of the next UNet call."""
        return min(self.calls // self.order, self.steps - 1)

    @property
    def lone(self) -> bool:
        return self.expected == 0

    @property
    def first(self) -> bool:
        """Whether the UNet call being made is the call's first."""
        return self.calls == 0

    @property
    def last(self) -> bool:
        return self.calls >= self.expected - 1

    @property
    def finished(self) -> bool:
        return self.calls >= self.expected


@dataclass(frozen=True)
class Call:
    """What a run has from the pipeline that it runs for."""

    border: Border
    executor: Executor
    adapters: LoadedAdapters
    settings: Settings
    walks: DeviceWalks
    texts: TextAdapters

    def execution(self, inputs: UNetInputs, gradients: bool = False) -> Execution:
        """How a run whose first UNet call this is executes."""
        settings, executor, device = self.settings, self.executor, inputs.sample.device
        whole, compiled = executor.opaque(inputs), settings.graphs == "compile"
        static = on_gpu(device) or compiled
        static = static and not (torch.is_grad_enabled() or executor.keeps_batch)
        if settings.graphs == "off":
            unrecorded = 'graphs="off"'
        elif whole is not None:
            unrecorded = whole
        elif executor.keeps_batch:
            unrecorded = f"the UNet has {executor.keeps_batch}"
        elif not static:
            unrecorded = f"the UNet is on {device}"
        else:
            unrecorded = why_not_recorded(inputs, settings.max_rows)
            unrecorded = unrecorded or executor.why_not_replayed or ""
        return Execution(
            settings.weights,
            settings.max_rows,
            static,
            None if unrecorded else settings.backend,
            compiled,
            gradients,
            whole,
            unrecorded,
        )


class Run:
    """One call of a pipeline: ``encode``, ``begin``, then ``step`` and ``after_step`` in turns, and
    ``close``. A run may end anywhere. Before a step come ``turn`` and, where adapters have changed,
    ``adapt``.

    ``gradients``: it takes some, for which inference mode has to be left. ``correction``: what it
    adds to the scheduler's sample after a step; whoever takes it resets it.
    """

    gradients = False

    def __init__(self, call: Call):
        self.call, self.settings = call, call.settings
        self.clock, self.execution, self.summary = Clock(), Execution(), Summary()
        self.recorder = Recorder(self.summary)
        self.correction: Tensor | None = None
        self.fading: Fading | None = None
        self._strong: int | None = None  # the step whose strengths the weights have
        self._batch = self._images = 0  # of the last step
        self._known = 0, 0  # a batch, and the images that the scheduler answered it with
        self._turns = 0  # UNet calls since then
        self._timestep: Any = None  # of the first of them

    @staticmethod
    def check(settings: Settings, unet: nn.Module, adapters: LoadedAdapters) -> None:
        """Raise ``ValueError`` for what would make a run fail."""
        check_names(settings.planned, adapters.loaded)
        check_scheduled(settings.weight_schedule or (), adapters.loaded)

    def encode(self, encode: functools.partial) -> Any:
        """The pipeline's prompt, encoded as the method wants it; before ``begin``, if at all."""
        return encode()

    def begin(self, inputs: UNetInputs, clock: Clock) -> None:
        """The first UNet call is about to be made: decide everything that holds for all."""
        raise NotImplementedError

    def step(
        self, plain: Callable[..., Any], inputs: UNetInputs, whole: Callable[[], Any], turn: int
    ) -> Any:
        """One UNet call: predictions (batch, C, H, W), or what ``whole``, the call as it is, gives.

        ``plain``: the UNet's own forward. ``turn``: as ``turn`` has told.
        """
        raise NotImplementedError

    def fade(self, inputs: UNetInputs) -> None:
        """Before rows run: weights as strong as the schedule says at this step."""
        fading, step = self.fading, self.clock.step
        if fading is not None and self._strong is not None and fading.moves(step, self._strong):
            self.prepare(inputs)

    def prepare(self, inputs: UNetInputs) -> None:
        """Make the weights of this step's strengths."""
        adapters, execution = self.call.adapters, self.execution
        if self.settings.weight_schedule:
            if self.fading is None:
                held = not (execution.static or execution.gradients)
                held = held and execution.weights != "delta"
                self.fading = Fading(self.settings, adapters, self.clock.steps, held)
            self._strong = step = self.clock.step
            adapters = self.fading.adapters(adapters, step)
            execution = self.fading.execution(execution, step)
        self.weigh(adapters, execution, inputs)

    def weigh(self, adapters: LoadedAdapters, execution: Execution, inputs: UNetInputs) -> None:
        """Have the executor make weights of ``adapters``."""
        raise NotImplementedError

    def adapt(self, adapters: LoadedAdapters, inputs: UNetInputs) -> None:
        """The adapters have changed since the last UNet call: go on with these."""
        raise NotImplementedError

    def turn(self, inputs: UNetInputs) -> int:
        """Which UNet call of its step this is, from 0: loops may run guidance part by part.

        Where no scheduler answers, the step follows the time steps.
        """
        if self._turns and _differ(self._timestep, inputs.timestep):
            self._follow(inputs.timestep)
        if not self._turns:
            self._timestep = inputs.timestep
        self._turns += 1
        return self._turns - 1

    def _follow(self, timestep: Any) -> None:
        clock, place = self.clock, self.call.border.place_of(timestep)
        if clock.lone:
            return
        self.recorder.end_step()
        self._turns, later = 0, clock.calls + 1 if place is None else place
        clock.calls = max(clock.calls, min(later, clock.expected - 1))
        self.unanswered()

    def control(self, call: functools.partial) -> Any:
        """What the ControlNet answers, before ``step``."""
        return call()

    def unanswered(self) -> None:
        """A step is over of which no scheduler has told."""

    def after_step(self, latents: Tensor) -> None:
        """The scheduler has returned ``latents``: one evaluation of the plan is done."""
        self._turns = 0
        self._images = len(latents)
        self._known = self._batch, len(latents)
        self.measure(latents)
        self.recorder.end_step()
        self.clock.calls += 1

    def measure(self, latents: Tensor) -> None:
        """Take what is asked of the latents."""
        if self.settings.record:
            self.recorder.read(latents)

    def close(self) -> None:
        """Free what only steps need; the summary stays, to be settled."""
        self.correction = None
        self.recorder.collect()

    def images(self, batch: int) -> int:
        """Images behind ``batch`` samples, which come as [unconditional images; conditional]."""
        known, images = self._known
        if batch == known and batch % images == 0:
            return images
        parts = 1 if self.clock.lone else self.call.border.parts()
        return batch // parts if batch % parts == 0 else batch

    def report(self, no_cache: str | None, device: torch.device) -> None:
        """Begin the summary. ``no_cache``: why features are not cached, None where they are."""
        method, settings = self.settings.method, self.settings
        self.summary = Summary(
            method=None if method is None else type(method).__name__.lower(),
            adapters=self.call.adapters.names,
            backend=_backend(settings.backend, device),
            weights=asdict(self.call.executor.store.report),
            cache={"used": no_cache is None, "reason": no_cache or "as the method schedules"},
        )
        self.recorder = Recorder(self.summary, settings.record, self.execution.static)


def _differ(timestep: Any, other: Any) -> bool:
    """Whether two UNet calls are of different time steps; waits for the device."""
    if timestep is other:
        return False
    first, second = (t.flatten()[0] if isinstance(t, Tensor) else t for t in (timestep, other))
    return float(first) != float(second)


def _backend(asked: str, device: torch.device) -> str:
    """What the ops run on."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        found = backends()
        return next(name for name in ("cuda", "triton", "torch") if found[name]["available"])
    return "cpu" if device.type == "cpu" else "torch"
