"""What ``enable`` adds to one pipeline: turns its UNet calls into the steps of a run."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from enum import Enum, auto
from threading import RLock
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..adapters import LoadedAdapters, read_adapters
from ..adapters.text import TextAdapters
from ..ops.backends import using
from ..ops.tensors import memory_in_use, on_gpu, plain_tensors
from ..unet.executor import Executor
from ..unet.inputs import UNetInputs, read_call
from .border import Border, unet_of
from .caller import Callers
from .devicewalk import DeviceWalks
from .run import Call, Clock, Run
from .runs import run_of
from .settings import Settings
from .summary import Summary

__all__ = ["Engine", "Phase"]


class Phase(Enum):
    """Where a pipeline is between two of its calls.

    IDLE: no call is known of; a UNet call would be a run of its own. ARMED: a call has begun, its
    first UNet call begins the run. RUNNING: the run is in progress. DONE: its last step is over.
    """

    IDLE = auto()
    ARMED = auto()
    RUNNING = auto()
    DONE = auto()


class Engine:
    """The state of an enabled pipeline: settings, the phase of its call, the run of that.

    One thread at a time is inside: layers know one batch. Another thread's UNet calls, of a
    pipeline that shares the UNet, wait for a step and run as diffusers left them.
    """

    def __init__(self, pipe: Any, settings: Settings, summary: Summary):
        self.settings = settings
        self.phase = Phase.IDLE
        self.lock = RLock()
        self._summary = summary
        self._border = Border(pipe, self)
        self._executor: Executor | None = None
        self._walks, self._texts = DeviceWalks(), TextAdapters()
        self._adapters = LoadedAdapters()
        self._run: Run | None = None
        self._encoded: Run | None = None  # a run in progress goes on until time steps are set
        self._callers = Callers()
        self._steps_before: Any = None
        self._compiled = False

    def settled(self) -> Summary:
        """The summary, with what the device alone knew until now."""
        with self.lock:
            if self._run is not None:
                self._run.recorder.settle()
            return self._summary

    def attach(self) -> None:
        """Hook the pipeline; raises before anything is changed (see ``check``)."""
        self._adapters = self.check(self.settings)
        self._executor = Executor(unet_of(self._border.pipe))
        self._border.attach()

    def detach(self) -> None:
        """Leave the pipeline as it was found; after an interruption, again."""
        with self.lock:
            self._border.detach()
            if self._executor is not None:
                self._executor.detach()
            self._drop()

    def check(self, settings: Settings) -> LoadedAdapters:
        """The pipeline's adapters, if a run with ``settings`` would be sound; changes nothing.

        Raises:
            ValueError: An adapter that is not plain LoRA or not finite, a cache position outside
                the UNet, or a name in ``low_frequency`` that is not loaded.
        """
        with self.lock:
            unet, executor = unet_of(self._border.pipe), self._executor
            if executor is None or executor.unet is not unet:
                adapters = read_adapters(unet)
            else:
                adapters = executor.watch.adapters()
            run_of(settings).check(settings, unet, adapters)
            return adapters

    # --- called from the border ---------------------------------------------------------------

    def encode(self, encode: functools.partial) -> Any:
        """A prompt is encoded, as the method wants it: at the beginning of a call, or within one.

        A run in progress goes on, unless time steps are set next.
        """
        with self.lock:
            self._look_back()
            if self.phase is not Phase.RUNNING:
                self._arm()
                return self._run.encode(encode)
            self._encoded = self._made_run()
            return self._encoded.encode(encode)

    def new_schedule(self) -> None:
        """Time steps are set: a call begins, here or where its prompt was encoded."""
        with self.lock:
            if self._border.pipe is None:
                return
            if self.phase is not Phase.ARMED:
                self._arm()
            # The pipeline sets its step count anew before the first UNet call: an old one would
            # lie.
            self._hide_step_count()

    def unet_call(self, plain: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """One UNet call of the pipeline, whose answer has the shape that the pipeline expects."""
        with self.lock:
            # The UNet may outlive the pipeline that was enabled, or be somebody else's too.
            if self._border.unet is None or self._border.pipe is None:
                return plain(*args, **kwargs)
            self._look_back()
            if self._busy and self._callers.is_elsewhere(self.settings.method is None):
                return plain(*args, **kwargs)
            if run_of(self.settings).gradients and torch.is_inference_mode_enabled():
                with plain_tensors():
                    args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
                    return self._step(plain, args, kwargs)
            return self._step(plain, args, kwargs)

    def control_call(self, call: functools.partial) -> Any:
        """One call of the pipeline's ControlNet, before that of the UNet."""
        with self.lock:
            ours = self.phase is Phase.RUNNING and self._callers.are_inside()
            return self._run.control(call) if ours else call()

    def take_correction(self) -> Tensor | None:
        """What this step adds to the scheduler's sample; None most of the time."""
        with self.lock:
            if self._run is None or not self._callers.is_here():
                return None
            correction, self._run.correction = self._run.correction, None
            return correction

    def after_step(self, latents: Tensor) -> None:
        """The scheduler has answered: one evaluation of the plan is done."""
        with self.lock:
            if self.phase is not Phase.RUNNING or not self._callers.is_here():
                return
            with using(self.settings.forced):
                self._run.after_step(latents)
            if self._run.clock.finished:
                self._finish()

    @property
    def _busy(self) -> bool:
        return self.phase in (Phase.ARMED, Phase.RUNNING)

    # --- a run --------------------------------------------------------------------------------

    def _step(self, plain: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        inputs = read_call(self._border.unet, args, kwargs)
        if self.phase is not Phase.RUNNING:
            self._begin(inputs)
        elif self._executor.watch.moved():
            self._adapt(inputs)
        self._encoded, run = None, self._run
        turn = run.turn(inputs)
        with using(self.settings.forced):
            out = run.step(plain, inputs, functools.partial(plain, *args, **kwargs), turn)
        summary, graphs = run.summary, self._executor.graphs
        unrecorded = {"used": False, "reason": run.execution.unrecorded}
        summary.graphs = unrecorded if graphs is None else graphs.report()
        # A GPU's allocator remembers its peak, and to ask it takes longer than to launch a step.
        if not on_gpu(device := inputs.sample.device) or run.clock.first or run.clock.last:
            summary.peak_bytes = max(summary.peak_bytes, memory_in_use(device))
        if run.clock.lone:  # outside a pipeline nothing tells when the call is over
            self._finish()
        if isinstance(out, Tensor):
            return UNet2DConditionOutput(sample=out) if inputs.return_dict else (out,)
        return out

    def _look_back(self) -> None:
        """Drop a run whose call something has ended: what comes is no step of it."""
        if self._busy and self._callers.have_left():
            self._drop()

    def _arm(self) -> None:
        """Forget the last call and read the adapters; the next UNet call begins a run."""
        self._callers.claim(self._border.pipe, self._busy)
        encoded = self._encoded
        self._drop()
        self._border.follow_scheduler()
        if not self._border.follows():
            self._follow_unet()
            encoded = None
        if encoded is None or encoded.settings is not self.settings:
            encoded = self._made_run()
        self._run = encoded
        self.phase = Phase.ARMED

    def _made_run(self) -> Run:
        self._adapters = self.check(self.settings)
        parts = self._border, self._executor, self._adapters, self.settings
        return run_of(self.settings)(Call(*parts, self._walks, self._texts))

    def _begin(self, inputs: UNetInputs) -> None:
        """At the first UNet call the pipeline knows its own number of steps."""
        clock = Clock()
        if self.phase is Phase.ARMED:
            clock = Clock(self._border.timesteps(), self._border.order())
        else:
            self._drop()
            self._callers.claim(self._border.pipe, self._busy)
        self.phase = Phase.IDLE
        if self._run is None or self._run.settings is not self.settings:
            self._run = self._made_run()
        self._executor.look()
        self._run.begin(inputs, clock)
        self._executor.watch.mark()
        self._summary = self._run.summary
        self._show_step_count()
        self._warn_of_compiling()
        self.phase = Phase.RUNNING

    def _adapt(self, inputs: UNetInputs) -> None:
        """The adapters were changed between two steps: the next ones run with what they are now."""
        self._adapters = self.check(self.settings)
        self._executor.look()
        self._run.adapt(self._adapters, inputs)
        self._executor.watch.mark()

    def _finish(self) -> None:
        """Free what a run holds; its summary stays."""
        self.phase = Phase.DONE
        self._run.close()
        self._executor.forget()
        if self._run.clock.lone:
            self._run.recorder.settle()
            self.phase, self._run = Phase.IDLE, None

    def _drop(self) -> None:
        self.phase, self._encoded = Phase.IDLE, None
        run, self._run = self._run, None
        if run is not None:
            run.close()
            run.recorder.settle()
        if self._executor is not None:
            self._executor.forget()
        self._show_step_count()

    def _hide_step_count(self) -> None:
        before = self._border.pipe.__dict__.pop("_num_timesteps", None)
        self._steps_before = self._steps_before if before is None else before

    def _show_step_count(self) -> None:
        if self._steps_before is not None and self._border.pipe is not None:
            self._border.pipe.__dict__.setdefault("_num_timesteps", self._steps_before)
        self._steps_before = None

    def _warn_of_compiling(self) -> None:
        pipe = self._border.pipe
        compiled = pipe.unet is not self._border.unet or self._border.unet._compiled_call_impl
        if compiled and not self._compiled:
            warnings.warn(
                "pipe.unet: compiled from outside, which stops at this engine; its steps are "
                'compiled with enable(pipe, graphs="compile")',
                stacklevel=2,
            )
        self._compiled = bool(compiled)

    def _follow_unet(self) -> None:
        self._executor.detach()
        self._border.detach()
        self._executor = Executor(unet_of(self._border.pipe))
        self._border.attach()
