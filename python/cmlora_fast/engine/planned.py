"""The run of a method that a schedule describes: one prediction per adapter subset."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Execution, LoadedAdapters
from ..clora.masks import pixel_shares, subset_masks
from ..ops.tensors import upload
from ..schedule import Plan, plan, text_adapters
from ..unet.cache import FeatureCache
from ..unet.executor import Texts
from ..unet.inputs import UNetInputs
from ..unet.rows import RowTable, pick
from ..unet.topology import Cut, find_cut
from .checks import (
    check_band,
    check_cut,
    check_entries,
    check_rows,
    warn_of_caching,
    warn_of_lone_call,
    warn_of_no_answer,
)
from .devicewalk import DeviceWalk, walks_on_device
from .hostwalk import Chosen, HostWalk
from .recorder import label
from .run import Call, Clock, Run
from .settings import Settings

__all__ = ["PlannedRun"]


class PlannedRun(Run):
    """The host decides what the rows of a step are, or the device does."""

    def __init__(self, call: Call):
        super().__init__(call)
        self._entries = _entries_of(call)
        self._walk: HostWalk | None = None
        self._device: DeviceWalk | None = None
        self._cut: Cut | None = None
        self._caches: dict[int, tuple[int, FeatureCache]] = {}  # turn -> its batch and features
        self._changes = 0
        self._masks: Tensor | None = None
        self._reading: Tensor | None = None
        self._decided: tuple[Tensor, RowTable | None] | None = None

    @staticmethod
    def check(settings: Settings, unet: nn.Module, adapters: LoadedAdapters) -> None:
        check_cut(settings.planned, unet)
        Run.check(settings, unet, adapters)

    def encode(self, encode: functools.partial) -> Any:
        pipe, method = self.call.border.pipe, self.settings.planned
        if self._entries is None:
            with self.call.texts.only(pipe, text_adapters(method, self.call.adapters.names)):
                return encode()
        names = zip(self._entries, self._names(), strict=True)
        apart = [text_adapters(method, n) or entry for entry, n in names]
        return self.call.texts.encode_apart(pipe, encode, apart)

    def begin(self, inputs: UNetInputs, clock: Clock) -> None:
        call, method = self.call, self.settings.planned
        self.clock = clock
        self._lay_out(inputs)
        walk = self._walk
        check_band(walk.measure, inputs.sample.shape[-2:])
        if clock.lone:
            warn_of_lone_call(method, call.adapters.names)
        elif self._cut is not None and walk.reuse:
            warn_of_caching(call.border.scheduler, clock.expected)
        self.report(self._no_cache, inputs.sample.device)

    def adapt(self, adapters: LoadedAdapters, inputs: UNetInputs) -> None:
        self.call, self._changes = replace(self.call, adapters=adapters), self._changes + 1
        self._entries = _entries_of(self.call)
        walk, early = self._walk, None if self._device is None else self._device.early
        self._lay_out(inputs)
        self._walk.resume(walk)
        if self._device is not None and early is not None:
            self._device.early = early
        self.summary.adapters = adapters.names
        self.summary.weights = asdict(self.call.executor.store.report)

    def _lay_out(self, inputs: UNetInputs) -> None:
        """Decide what rows there are, with which weights, and what is kept of them."""
        call, method, executor = self.call, self.settings.planned, self.call.executor
        sample, clock = inputs.sample, self.clock
        plans = self._plans(inputs)
        self._walk = walk = HostWalk(plans, clock.order, executor.keeps_batch is not None)
        check_rows(method, plans, executor.keeper)
        execution = call.execution(inputs)
        if self._changes > 1 and execution.weights == "auto":  # a fade: folds would not last
            execution = replace(execution, weights="delta")
        self.execution = execution
        self.fading = None  # of these adapters
        self.prepare(inputs)
        self._no_cache, self._cut, self._caches = execution.whole, None, {}
        kept = walk.reuse or (call.adapters.names and self.settings.record)
        if self._no_cache is None and not kept:
            self._no_cache = "the method reuses nothing"
        if self._no_cache is None:  # recording wants the features even where nothing is reused
            position = method.cache_layer_id, method.cache_block_id
            self._cut = find_cut(call.border.unet, *position)
        self._device = self._decided = self._masks = None
        if execution.static and execution.max_rows is None and walks_on_device(walk.plans):
            self._device = call.walks.along(walk.plans[0], sample.device)
        regions = getattr(method, "masks", None)
        if regions is not None:
            size = sample.shape[-2:]
            self._masks = subset_masks(regions, walk.subsets, size, sample.device)

    def weigh(self, adapters: LoadedAdapters, execution: Execution, inputs: UNetInputs) -> None:
        walk = self._walk
        texts = Texts(lambda batch: walk.pairs(batch, self.images(batch)))
        given = walk.subsets, inputs.scale, execution, texts, inputs.sample.device
        self.call.executor.prepare(adapters, *given)

    def step(
        self, plain: Callable[..., Any], inputs: UNetInputs, whole: Callable[[], Any], turn: int
    ) -> Any:
        self.recorder.begin_step()
        batch, images = inputs.batch, self.images(inputs.batch)
        self._batch, cache = batch, self._cache_of(turn, batch)
        decide = self._on_host if self._device is None else self._on_device
        table, chosen = decide(batch, images, inputs.sample.device, cache, turn)
        call, means = self.clock.calls, None
        if table.share is not None and table.share.dim() == 4:
            means = table.share.mean((2, 3))
        walk, reuses = self._walk, self._reuses
        full = len(table.deep)
        self.recorder.note(
            full,
            len(table) - full,
            inputs.timestep,
            lambda: walk.records(call, table, chosen or walk.choose(call, images, reuses), means),
        )
        if cache is None and not self.call.adapters.names:
            return whole()  # no adapter, nothing reused: the plain pipeline
        self.fade(inputs)
        noise = self.call.executor.step(plain, inputs, table, cache)
        if self.settings.record and cache is not None:
            self.recorder.keep("features", self._features(table, cache))
        return noise

    @property
    def _reuses(self) -> bool:
        """Whether features are kept, and not for the record alone."""
        return self._cut is not None and self._walk.reuse

    def _cache_of(self, turn: int, batch: int) -> FeatureCache | None:
        """The features of this part of the guidance; those of another batch are of no use."""
        if self._cut is None:
            return None
        known, cache = self._caches.get(turn, (0, None))
        if known != batch:
            cache = self.call.executor.new_cache(self._cut, lasting=turn == 0)
            self._caches[turn] = batch, cache
        return cache

    def unanswered(self) -> None:
        warn_of_no_answer(self.settings.planned, self._walk.measure)

    def measure(self, latents: Tensor) -> None:
        measure = self._walk.measure
        if measure is None:
            return super().measure(latents)
        given = measure.cutoff, measure.log, self._walk.read
        self._reading = self.recorder.read(latents, *given)
        if self._device is None:
            self.recorder.settle()  # the host decides

    def close(self) -> None:
        self._caches = {}
        super().close()

    def images(self, batch: int) -> int:
        if self._entries is None:
            return super().images(batch)
        if self._images not in (0, len(self._entries)):
            raise ValueError(
                f"adapter_names: expected {len(self._entries)} images as the call began; "
                f"a callback has left {self._images}"
            )
        return len(self._entries)

    def _plans(self, inputs: UNetInputs) -> list[Plan]:
        """One for all images, or one per image."""
        border, names, T = self.call.border, self._names(), self.clock.steps
        guided = border.guided()
        if self._entries is not None:
            latents = inputs.sample[:, : border.unet.config.out_channels]
            parts = 0 if self.clock.lone else border.parts()
            check_entries(self._entries, replace(inputs, sample=latents), parts)
        if len(set(names)) > 1 and self.call.executor.keeps_batch:
            raise ValueError(
                "adapter_names: expected a UNet that treats every sample by itself; this one has "
                f"{self.call.executor.keeps_batch}: call it image by image"
            )
        made = {n: plan(self.settings.planned, n, T, guided=guided) for n in names}
        return [made[n] for n in names] if len(made) > 1 else list(made.values())

    def _names(self) -> list[tuple[str, ...]]:
        """Adapters of non-zero weight: of all images, or per image."""
        names = self.call.adapters.names
        entries = (names,) if self._entries is None else self._entries
        return [tuple(name for name in entry if name in names) for entry in entries]

    def _on_host(
        self, batch: int, images: int, device: torch.device, cache: FeatureCache | None, turn: int
    ) -> tuple[RowTable, tuple[Chosen, ...]]:
        call, filled = self.clock.calls, None if cache is None else cache.filled
        chosen = self._walk.choose(call, images, self._reuses)
        share_of = functools.partial(self._share, device)
        return self._walk.table(call, batch, chosen, filled, share_of), chosen

    def _share(self, device: torch.device, table: RowTable, weights: Sequence[float]) -> Tensor:
        share = upload(table.shares(weights), torch.float32, device)
        if self._masks is None:
            return share
        subsets = torch.tensor([[table.subset[row] for row in line] for line in table.by_sample])
        real = torch.tensor(table.shares([1.0] * len(table)), device=device)
        return pixel_shares(share, self._masks[subsets] * real[:, :, None, None])

    def _on_device(
        self, batch: int, images: int, device: torch.device, cache: FeatureCache | None, turn: int
    ) -> tuple[RowTable, None]:
        walk, clock, count = self._device, self.clock, len(self._walk.subsets)
        if cache is None and not walk.blends:  # nothing is chosen
            return RowTable.product(count, batch), None
        first = clock.calls % clock.order == 0  # the evaluations of one step share its choice
        decided = self._decided is not None and self._decided[0].shape[1] == batch
        if (first and not turn) or not decided:
            self._decided = walk.choose(clock.step, batch, images, self._reading)
        (share, deep), everyone = self._decided, tuple(range(count * batch))
        if not self._reuses or len(cache.filled) < len(everyone):
            deep = everyone
        elif not first:
            deep = ()
        elif deep is None:
            deep = everyone if walk.refreshed(clock.step) else ()
        if self._masks is not None:
            share = pixel_shares(share, self._masks)
        share = share if walk.blends else None
        return RowTable.product(count, batch, deep=deep, share=share), None

    def _features(self, table: RowTable, cache: FeatureCache) -> dict[str, Tensor]:
        """Recorded: the features that entered the up block at this call, by adapter."""
        kept = {}
        for subset in dict.fromkeys(table.subset):
            slots = (slot for s, slot in zip(table.subset, table.slot, strict=True) if s == subset)
            features = pick(cache.features, tuple(slots))
            kept[label(self._walk.subsets[subset])] = features.detach().cpu().clone()
        return kept


def _entries_of(call: Call) -> tuple[tuple[str, ...], ...] | None:
    """``adapter_names``, one tuple per image.

    Raises:
        ValueError: A name that is not an active adapter.
    """
    entries = call.settings.adapter_names
    active = {*call.adapters.active, *call.texts.active(call.border.pipe)} if entries else ()
    for i, entry in enumerate(entries or ()):
        for name in entry:
            if name not in active:
                known = ", ".join(map(repr, sorted(active))) or "none is"
                raise ValueError(
                    f"adapter_names[{i}]: expected active adapters ({known}); got {name!r}"
                )
    return entries
