"""What ``enable`` adds to one pipeline: turns its UNet calls into the steps of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import ops
from ..adapters import LoadedAdapters, read_adapters
from ..adapters.text import only_adapters
from ..clora.masks import subset_masks
from ..clora.prompts import RowPrompts, encode_rows
from ..clora.step import Contrast
from ..methods import CLoRA, Switch
from ..ops.tensors import memory_in_use, on_gpu, plain_tensors
from ..schedule import Plan, plan, plan_rows
from ..unet.executor import Executor
from ..unet.graphs import why_not_recorded
from ..unet.inputs import UNetInputs, read_call
from ..unet.tap import AttentionTap
from ..unet.topology import find_cut
from .border import Border
from .checks import (
    check_band,
    check_contrast,
    check_cut,
    check_names,
    input_scale,
    warn_of_caching,
    warn_of_lone_call,
)
from .devicewalk import DeviceWalk, walks_on_device
from .run import Run
from .settings import Settings, new_summary
from .summary import Summary

__all__ = ["Engine"]


class Engine:
    """The state of an enabled pipeline: settings, the run in progress, the last summary."""

    def __init__(self, pipe: Any, settings: Settings, summary: Summary):
        self.settings = settings
        self.summary = summary
        self._border = Border(pipe, self)
        self._executor: Executor | None = None
        self._adapters = LoadedAdapters()
        self._run: Run | None = None
        self._armed = False
        self._steps_before: Any = None
        self._prompts: RowPrompts | None = None
        self._contrast: Contrast | None = None
        self._tap = AttentionTap()
        self._correction: Tensor | None = None
        self._walk: DeviceWalk | None = None  # kept: a plan need not be brought over twice
        self._no_graphs = "nothing has run"

    def settled(self) -> Summary:
        """The summary, with what the device alone knew until now."""
        if self._run is not None:
            self._run.settle()
        return self.summary

    def attach(self) -> None:
        """Hook the pipeline; raises before anything is changed (see ``check``)."""
        self._adapters = self.check(self.settings)
        self._executor = Executor(self._border.pipe.unet)
        self._border.attach()

    def detach(self) -> None:
        """Leave the pipeline as it was found."""
        self._drop_run()
        self._border.detach()
        if self._executor is not None:
            self._executor.detach()

    def check(self, settings: Settings) -> LoadedAdapters:
        """The pipeline's adapters, if a run with ``settings`` would be sound; changes nothing.

        Raises:
            ValueError: An adapter that is not plain LoRA or not finite, a cache position outside
                the UNet, or a name in ``low_frequency`` that is not loaded.
        """
        unet, method = self._border.pipe.unet, settings.planned
        adapters = read_adapters(unet)
        check_cut(method, unet)
        check_names(method, adapters.loaded)
        return adapters

    # --- called from the border ---------------------------------------------------------------

    def start(self, encode: Callable[[], Any]) -> Any:
        """A pipeline call begins: encode its prompt."""
        self._arm()
        if isinstance(self.settings.method, CLoRA):
            names = self._adapters.names
            self._prompts = encode_rows(self._border.pipe, self.settings.method, encode, names)
        with only_adapters(self._border.pipe, self._text_adapters()):
            return encode()

    def new_schedule(self) -> None:
        """Time steps are set: where no prompt was encoded before, a call or a loop begins here."""
        if not self._armed and self._border.pipe is not None:
            self._arm()

    def unet_call(self, plain: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """One UNet call of the pipeline, whose answer has the shape that the pipeline expects."""
        if self._border.pipe is None:  # the UNet outlived the pipeline that was enabled
            return plain(*args, **kwargs)
        if isinstance(self.settings.method, CLoRA) and torch.is_inference_mode_enabled():
            with plain_tensors():  # its updates need gradients
                return self.unet_call(plain, *tree_map_only(Tensor, Tensor.clone, (args, kwargs)))
        inputs = read_call(self._border.unet, args, kwargs)
        if self._run is None or self._run.finished:
            self._begin(inputs)
        started = time.perf_counter()
        with ops.force(backend=_forced(self.settings.backend)):
            out = self._step(plain, inputs, args, kwargs, started)
        self.summary.graphs = self._graphs_report()
        self.summary.peak_bytes = max(self.summary.peak_bytes, memory_in_use(inputs.sample.device))
        if self._run.expected == 0:  # outside a pipeline nothing tells when the call is over
            self._finish()
        if isinstance(out, Tensor):
            return UNet2DConditionOutput(sample=out) if inputs.return_dict else (out,)
        return out

    def take_correction(self) -> Tensor | None:
        """What this step adds to the scheduler's sample; None most of the time."""
        correction, self._correction = self._correction, None
        return correction

    def after_step(self, latents: Tensor) -> None:
        """The scheduler has answered: one evaluation of the plan is done."""
        if self._run is None or self._run.finished:
            return
        with ops.force(backend=_forced(self.settings.backend)):
            self._run.after_step(latents)
        if self._run.finished:
            self._finish()

    # --- a run --------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Forget the last call and read the adapters; the next UNet call begins a run."""
        self._drop_run()
        self._border.follow_scheduler()
        if self._border.pipe.unet is not self._border.unet:
            self._follow_unet()
        self._adapters = self.check(self.settings)
        self._armed = True
        # The pipeline sets its step count anew before the first UNet call: an old one would lie.
        self._steps_before = self._border.pipe.__dict__.pop("_num_timesteps", None)

    def _begin(self, inputs: UNetInputs) -> None:
        """At the first UNet call the pipeline knows its own number of steps."""
        expected, order = 0, 1
        if self._armed:
            expected = self._border.timesteps()
            order = self._border.order()
        else:
            self._drop_run()
            self._adapters = self.check(self.settings)
        self._armed = False
        self._executor.look()
        method, T = self.settings.planned, max(1, -(-expected // order))
        if isinstance(method, CLoRA):
            self._begin_contrast(method, inputs, T, expected, order)
            return
        schedule = plan(method, self._adapters.names, T, guided=self._border.guided())
        check_band(schedule.measure, inputs.sample.shape[-2:])
        compiles = self.settings.graphs == "compile"
        reason, static = self._executor.opaque(inputs), self._is_static(inputs, compiles)
        self._no_graphs = self._why_no_graphs(inputs, static, reason)
        self._executor.prepare(
            self._adapters,
            schedule.subsets,
            inputs.scale,
            self.settings.weights,
            static=static,
            graphs=None if self._no_graphs else self.settings.backend,
            compiles=compiles,
        )
        base_alone = schedule.subsets == ((),)
        if not schedule.reuse and (base_alone or not self.settings.record):
            reason = "the method reuses nothing"
        cache = None
        if reason is None:  # recording wants the features even where nothing is reused
            position = (method.cache_layer_id, method.cache_block_id)
            cache = self._executor.new_cache(find_cut(self._border.unet, *position))
        if expected == 0:
            warn_of_lone_call(method, self._adapters.names)
        elif reason is None and schedule.reuse:
            warn_of_caching(self._border.scheduler, expected)
        self.summary = self._summary(reason, inputs)
        self._run = Run(schedule, order, expected, self.summary, cache, self.settings.record)
        self._run.keeps_batch = self._executor.keeps_batch
        if static:
            self._run.lazy = True
            if self.settings.max_rows is None and walks_on_device(schedule):
                self._run.on_device = self._device_walk(schedule, inputs.sample.device)
        regions = getattr(method, "masks", None)
        if regions is not None:
            sample = inputs.sample
            size, device = sample.shape[-2:], sample.device
            self._run.masks_of_subsets = subset_masks(regions, schedule.subsets, size, device)

    def _is_static(self, inputs: UNetInputs, compiles: bool = False) -> bool:
        """Whether the host shall not wait for the device, and memory of a run stays."""
        wanted = on_gpu(inputs.sample.device) or compiles
        return wanted and not (torch.is_grad_enabled() or self._executor.keeps_batch)

    def _why_no_graphs(self, inputs: UNetInputs, static: bool, opaque: str | None) -> str:
        if self.settings.graphs == "off":
            return 'graphs="off"'
        if opaque is not None:
            return opaque
        if self._executor.keeps_batch:
            return "attention processors read the pipeline's batch"
        if not static:
            return f"the UNet is on {inputs.sample.device}"
        return why_not_recorded(self._border.unet, inputs, self.settings.max_rows) or ""

    def _device_walk(self, schedule: Plan, device: torch.device) -> DeviceWalk:
        walk = self._walk
        if walk is None or (walk.plan, walk.device) != (schedule, device):
            walk = self._walk = DeviceWalk(schedule, device)
        walk.restart()
        return walk

    def _begin_contrast(
        self, method: CLoRA, inputs: UNetInputs, T: int, expected: int, order: int
    ) -> None:
        if self._prompts is None or expected == 0:
            raise RuntimeError("CLoRA: expected a pipeline call, whose prompt gives the rows")
        prompts, styles, parts = self._prompts, method.style_adapters, self._border.parts()
        opaque, static = self._executor.opaque(inputs), self._is_static(inputs)
        check_contrast(opaque, inputs, parts, method, prompts)
        self._no_graphs = self._why_no_graphs(inputs, static, opaque)
        subsets = [(() if r.adapter is None else (r.adapter,)) + styles for r in prompts.rows]
        schedule = plan_rows(subsets, T)
        adapters = self._adapters.scaled(dict.fromkeys(styles, method.style_weight))
        self._executor.prepare(
            adapters,
            schedule.subsets,
            inputs.scale,
            self.settings.weights,
            lambda batch: prompts.at(batch, self._border.parts(), inputs.sample),
            static=static,
            graphs=None if self._no_graphs else self.settings.backend,
            gradients=method.latent_update,
        )
        self._tap.attach(self._border.unet)
        self._contrast = Contrast(
            method,
            prompts.rows,
            self._executor,
            self._tap,
            T,
            self.settings.max_rows,
            self.settings.record,
            inputs.sample,
            self._border.unet.config.out_channels,
        )
        self.summary = self._summary("every row is full", inputs)
        self.summary.rows = prompts.rows
        self._run = Run(schedule, order, expected, self.summary, None, self.settings.record)
        self._run.lazy = static

    def _contrast_step(self, plain: Callable[..., Any], inputs: UNetInputs) -> Tensor:
        images = self._images(inputs.batch)
        scale = input_scale(self._border.scheduler, inputs.timestep)
        step = self._contrast.step(plain, inputs, self._run.step, images, scale)
        self._correction = step.correction
        self._run.note_contrast(step, [row.adapter for row in self._prompts.rows])
        return step.noise

    def _step(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        args: tuple,
        kwargs: dict[str, Any],
        started: float,
    ) -> Any:
        run = self._run
        run.begin_batch(inputs.batch)
        decision = run.decide(inputs.batch, self._images(inputs.batch), inputs.sample.device)
        run.note(decision, inputs.timestep, started)
        if self._contrast is not None:
            return self._contrast_step(plain, inputs)
        if run.cache is None and run.plan.subsets == ((),):
            return plain(*args, **kwargs)  # no adapter, nothing reused: the plain pipeline
        noise = self._executor.step(
            plain, inputs, decision.rows, decision.weights, self.settings.max_rows, run.cache
        )
        if run.record and run.cache is not None:
            run.keep_features(decision)
        return noise

    def _finish(self) -> None:
        """Free what a run holds; its summary stays."""
        self._run.collect()
        self._run.cache = None
        if self._run.expected == 0:
            self._run.settle()
            self._run = None
        self._end_contrast()
        self._executor.forget()

    def _end_contrast(self) -> None:
        self._tap.detach()
        self._contrast = self._prompts = self._correction = None

    def _drop_run(self) -> None:
        self._armed = False
        self._end_contrast()
        run, self._run = self._run, None
        if run is not None:
            run.collect()
            run.settle()
        if self._executor is not None:
            self._executor.forget()
        if self._steps_before is not None:
            self._border.pipe.__dict__.setdefault("_num_timesteps", self._steps_before)
            self._steps_before = None

    def _follow_unet(self) -> None:
        self._executor.detach()
        self._border.detach()
        self._executor = Executor(self._border.pipe.unet)
        self._border.attach()

    # --- what the pipeline knows ----------------------------------------------------------------

    def _summary(self, no_cache: str | None, inputs: UNetInputs) -> Summary:
        device, report = inputs.sample.device, self._executor.store.report
        return new_summary(self.settings, self._adapters.names, report, no_cache, device)

    def _graphs_report(self) -> dict[str, Any]:
        graphs = self._executor.graphs
        return {"used": False, "reason": self._no_graphs} if graphs is None else graphs.report()

    def _images(self, batch: int) -> int:
        """Images behind ``batch`` samples, which come as [unconditional images; conditional]."""
        known = self._run.images  # from the scheduler's answer, once there is one
        if known and batch % known == 0:
            return known
        parts = self._border.parts() if self._run.expected else 1
        return batch // parts if batch % parts == 0 else batch

    def _text_adapters(self) -> tuple[str, ...] | None:
        """The released Switch encodes its prompt with the first adapter alone active."""
        if not isinstance(self.settings.method, Switch) or not self._adapters.names:
            return None
        first = plan(self.settings.method, self._adapters.names, 1)
        return first.subsets[first.steps[0].groups[0]]


def _forced(backend: str) -> str | None:
    return None if backend == "auto" else backend
