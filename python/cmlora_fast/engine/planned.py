"""The run of a method that a schedule describes: one prediction per adapter subset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Execution, LoadedAdapters
from ..adapters.text import active_in_text, encode_apart, only_adapters
from ..clora.masks import pixel_shares, subset_masks
from ..schedule import Plan, plan, text_adapters
from ..unet.cache import FeatureCache
from ..unet.executor import Texts
from ..unet.inputs import UNetInputs
from ..unet.rows import RowTable, pick
from ..unet.topology import find_cut
from .checks import (
    check_band,
    check_cut,
    check_entries,
    check_names,
    warn_of_caching,
    warn_of_lone_call,
)
from .devicewalk import DeviceWalk, walks_on_device
from .hostwalk import Chosen, HostWalk
from .recorder import Recorder, image_record, label
from .run import Call, Clock
from .settings import Settings
from .summary import Summary

__all__ = ["PlannedRun"]


class PlannedRun:
    """As ``Run`` says; the host decides what the rows of a step are, or the device does."""

    gradients = False

    def __init__(self, call: Call):
        self._call, self.settings = call, call.settings
        self._method = call.settings.planned
        self._entries = _entries_of(call)
        self.correction: Tensor | None = None
        self.clock, self.execution, self.summary = Clock(), Execution(), Summary()
        self._recorder: Recorder | None = None
        self._walk: HostWalk | None = None
        self._device: DeviceWalk | None = None
        self._cache: FeatureCache | None = None
        self._masks: Tensor | None = None
        self._reading: Tensor | None = None
        self._decided: tuple[Tensor, RowTable | None] | None = None
        self._batch = self._images = 0

    @staticmethod
    def check(settings: Settings, unet: nn.Module, adapters: LoadedAdapters) -> None:
        check_cut(settings.planned, unet)
        check_names(settings.planned, adapters.loaded)

    def encode(self, encode: functools.partial) -> Any:
        pipe, method = self._call.border.pipe, self._method
        if self._entries is None:
            with only_adapters(pipe, text_adapters(method, self._call.adapters.names)):
                return encode()
        names = [text_adapters(method, entry) or entry for entry in self._entries]
        return encode_apart(pipe, encode, names)

    def begin(self, inputs: UNetInputs, clock: Clock) -> None:
        call, method, executor = self._call, self._method, self._call.executor
        border, sample, self.clock = call.border, inputs.sample, clock
        plans = self._plans(inputs)
        self._walk = walk = HostWalk(plans, clock.order, executor.keeps_batch)
        check_band(walk.measure, sample.shape[-2:])
        self.execution = execution = call.execution(inputs)
        texts = Texts(lambda batch: walk.pairs(batch, self._images_of(batch)))
        executor.prepare(call.adapters, walk.subsets, inputs.scale, execution, texts)
        no_cache = execution.whole
        if not walk.reuse and not (call.adapters.names and self.settings.record):
            no_cache = "the method reuses nothing"
        if no_cache is None:  # recording wants the features even where nothing is reused
            position = method.cache_layer_id, method.cache_block_id
            self._cache = executor.new_cache(find_cut(border.unet, *position))
        self._cached = self._cache is not None
        if clock.lone:
            warn_of_lone_call(method, call.adapters.names)
        elif self._cached and walk.reuse:
            warn_of_caching(border.scheduler, clock.expected)
        self.summary = call.summary(no_cache, sample.device)
        self._recorder = Recorder(self.summary, self.settings.record, execution.static)
        if execution.static and execution.max_rows is None and walks_on_device(walk.plans):
            self._device = call.walks.along(walk.plans[0], sample.device)
        regions = getattr(method, "masks", None)
        if regions is not None:
            size = sample.shape[-2:]
            self._masks = subset_masks(regions, walk.subsets, size, sample.device)

    def step(self, plain: Callable[..., Any], inputs: UNetInputs, whole: Callable[[], Any]) -> Any:
        self._recorder.begin_step()
        batch, images = inputs.batch, self._images_of(inputs.batch)
        if batch != self._batch:  # features of another batch size are of no use
            self._batch = batch
            self._walk.forget()
            self._cache = self._cache and self._cache.empty()
        decide = self._on_host if self._device is None else self._on_device
        table, chosen = decide(batch, images, inputs.sample.device)
        call, means = self.clock.calls, None
        if table.share is not None and table.share.dim() == 4:
            means = table.share.mean((2, 3))
        self._recorder.note(
            table, inputs.timestep, lambda: self._records(call, images, table, chosen, means)
        )
        if self._cache is None and not self._call.adapters.names:
            return whole()  # no adapter, nothing reused: the plain pipeline
        noise = self._call.executor.step(plain, inputs, table, self._cache)
        if self._recorder.record and self._cache is not None:
            self._recorder.keep("features", self._features(table))
        return noise

    def after_step(self, latents: Tensor) -> None:
        self._images = len(latents)
        measure = self._walk.measure
        if measure is not None:
            self._reading = self._recorder.read(
                latents, measure.cutoff, measure.log, self._walk.read
            )
            if self._device is None:
                self._recorder.settle()  # the host decides
        elif self._recorder.record:
            self._recorder.read(latents)
        self._recorder.end_step()
        self.clock.calls += 1

    def settle(self) -> None:
        if self._recorder is not None:
            self._recorder.settle()

    def close(self) -> None:
        self._cache = None
        if self._recorder is not None:
            self._recorder.collect()

    def _plans(self, inputs: UNetInputs) -> list[Plan]:
        """One for all images, or one per image."""
        adapters, border, T = self._call.adapters.names, self._call.border, self.clock.steps
        guided, names = border.guided(), [adapters]
        if self._entries is not None:
            check_entries(self._entries, inputs, 0 if self.clock.lone else border.parts())
            names = [tuple(n for n in entry if n in adapters) for entry in self._entries]
        if len(set(names)) > 1 and self._call.executor.keeps_batch:
            raise ValueError(
                "adapter_names: expected attention processors that treat every sample by itself; "
                "those of this UNet read the pipeline's batch: call it image by image"
            )
        made = {n: plan(self._method, n, T, guided=guided) for n in names}
        return [made[n] for n in names] if len(made) > 1 else list(made.values())

    def _on_host(
        self, batch: int, images: int, device: torch.device
    ) -> tuple[RowTable, tuple[Chosen, ...]]:
        walk, call, cache = self._walk, self.clock.calls, self._cache
        chosen = walk.choose(call, images, self._cached)
        table, of_row = walk.table(call, batch, chosen, None if cache is None else cache.filled)
        return walk.weigh(table, of_row, self._masks, device), chosen

    def _on_device(self, batch: int, images: int, device: torch.device) -> tuple[RowTable, None]:
        walk, clock, count = self._device, self.clock, len(self._walk.subsets)
        first = clock.calls % clock.order == 0  # the evaluations of one step share its choice
        if first or self._decided[0].shape[1] != batch:
            self._decided = walk.choose(clock.step, batch, images, self._reading)
        (share, deep), everyone = self._decided, tuple(range(count * batch))
        if self._cache is None or len(self._cache.filled) < len(everyone):
            deep = everyone
        elif not first:
            deep = ()
        elif deep is None:
            deep = everyone if walk.refreshed(clock.step) else ()
        if self._masks is not None:
            share = pixel_shares(share, self._masks)
        share = share if walk.blends else None
        return RowTable.product(count, batch, deep=deep, share=share), None

    def _records(
        self,
        call: int,
        images: int,
        table: RowTable,
        chosen: Sequence[Chosen] | None,
        means: Tensor | None,
    ) -> list[dict[str, Any]]:
        """Fields of the record of a call; ``means`` (J, batch): shares over the pixels."""
        chosen = chosen or self._walk.choose(call, images, self._cached)
        by_pixel = None if means is None else means.t().tolist()
        return [
            image_record(
                self._walk.subsets,
                self._walk.groups(call, one[0]),
                table,
                (image, images),
                one,
                None if by_pixel is None else by_pixel[image],
            )
            for image, one in enumerate(chosen)
        ]

    def _features(self, table: RowTable) -> dict[str, Tensor]:
        """Recorded: the features that entered the up block at this call, by adapter."""
        kept = {}
        for subset in dict.fromkeys(table.subset):
            slots = (slot for s, slot in zip(table.subset, table.slot, strict=True) if s == subset)
            features = pick(self._cache.features, tuple(slots))
            kept[label(self._walk.subsets[subset])] = features.detach().cpu().clone()
        return kept

    def _images_of(self, batch: int) -> int:
        if self._entries is not None:
            return len(self._entries)
        return batch if self.clock.lone else self._call.images(batch, self._images)


def _entries_of(call: Call) -> tuple[tuple[str, ...], ...] | None:
    """``adapter_names``, one tuple per image.

    Raises:
        ValueError: A name that is not an active adapter.
    """
    entries = call.settings.adapter_names
    active = {*call.adapters.active, *active_in_text(call.border.pipe)} if entries else ()
    for i, entry in enumerate(entries or ()):
        for name in entry:
            if name not in active:
                known = ", ".join(map(repr, sorted(active))) or "none is"
                raise ValueError(
                    f"adapter_names[{i}]: expected active adapters ({known}); got {name!r}"
                )
    return entries
