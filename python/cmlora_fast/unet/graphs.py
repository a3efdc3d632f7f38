"""Steps that are computed once and replayed: on a GPU as CUDA graphs, compiled before on request.

A step reads nothing but memory that stays: its own copies of the call's arguments, the weights, the
text's keys and values, the feature cache and the row tables. A replay therefore is a copy of the
arguments and one launch, whatever adapters and rows the tables name by then.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ..adapters import Execution
from ..ops.tensors import is_dense
from .cache import FeatureCache
from .forward import Denoiser
from .inputs import UNetInputs
from .replay import Outputs, Pass, Recorder, copy_into, shape_of
from .rows import Rows, RowTable

__all__ = ["StepGraphs", "why_not_recorded", "why_not_replayed"]

MOST_PASSES = 12  # kept; CMLoRA and CLoRA need three per shape of the latents
MOST_SHAPES = 4  # of feature caches; more of them, and everything is recorded anew
PLAIN = (AttnProcessor, AttnProcessor2_0)  # read text by its keys and values alone


def why_not_recorded(inputs: UNetInputs, max_rows: int | None) -> str | None:
    """Why a call's steps cannot be replayed, of what it brings. None if they can."""
    if max_rows is not None:
        return "max_rows cuts steps into chunks"
    if inputs.attention_kwargs is not None:
        return f"the UNet was called with attention arguments {sorted(inputs.attention_kwargs)}"
    if torch.is_autocast_enabled(inputs.sample.device.type):
        return "autocast is on"
    for name, value in (inputs.added or {}).items():
        if not isinstance(value, Tensor):
            return f"the UNet was called with {name} that is no tensor"
    return None


def why_not_replayed(unet: nn.Module) -> str | None:
    """What modules do beside kernels on memory that stays. None if that is all they do."""
    packed = (name for name, weight in unet.named_parameters() if not is_dense(weight))
    if (name := next(packed, None)) is not None:
        return f"{name} is packed or elsewhere"
    foreign = None
    for name, module in unet.named_modules():
        if hasattr(module, "_hf_hook"):
            return f"accelerate moves the weights of {name or 'the UNet'}"
        if name and (module._forward_hooks or module._forward_pre_hooks):
            return f"{name} has forward hooks"
        if foreign is None and isinstance(module, Attention):
            plain = type(module.processor) in PLAIN
            if not plain or (module.is_cross_attention and module.norm_cross):
                foreign = f"{name} reads text by {type(module.processor).__name__}"
    return foreign


@dataclass
class _Step:
    """A step of one kind: predictions of its rows, summed by shares; all but the inputs stays.

    Args:
        denoiser: The UNet, in parts.
        rows: All rows of the step, whose shares, and deep ones by the device, are of its own.
        cache: On memory that other steps share.
    """

    denoiser: Denoiser
    rows: Rows
    cache: FeatureCache | None

    @classmethod
    def of(
        cls, denoiser: Denoiser, rows: Rows, table: RowTable, cache: FeatureCache | None
    ) -> _Step:
        deep = table.deep
        if isinstance(deep, RowTable):
            deep = RowTable.of_memory(deep.memory.clone(), deep.sample, deep.runs)
        share = None if table.share is None else table.share.clone()
        cache = None if cache is None else replace(cache, filled=set())
        return cls(denoiser, replace(rows, table=replace(table, deep=deep, share=share)), cache)

    def load(self, table: RowTable) -> None:
        """Take over what a call's table says on the device."""
        mine = self.rows.table
        if isinstance(table.deep, RowTable):
            copy_into(mine.deep.memory, table.deep.memory)
        copy_into(mine.share, table.share)

    def __call__(self, inputs: UNetInputs) -> tuple[Tensor]:
        try:
            noise = self.denoiser(inputs, self.rows, self.cache)
        finally:
            self.denoiser.state.rows = None
        return (self.rows.table.combined(noise),)


class StepGraphs:
    """The recorded passes of one UNet, for one set of weights.

    A pass of a new kind or shape is computed; its second time it is recorded; from then on it is
    replayed. The one unused for longest goes where there are too many. What fails to be recorded
    ends recording, with the reason in ``failure``; what fails to be compiled ends compiling alone,
    with the reason in ``uncompiled``.

    Args:
        device: The UNet's.
        text: Memory of the keys and values, see ``LayerState.text_memory``.
        features: Memory of the feature caches, see ``FeatureCache.buffers``.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._passes: OrderedDict[Hashable, Pass] = OrderedDict()
        self._for: tuple = ()
        self._kept: tuple = ()
        self._recorder = Recorder(device)
        self.text: dict[tuple, Tensor] = {}
        self.features: dict[tuple, Tensor] = {}
        self.failure: str | None = None
        self.uncompiled: str | None = None
        self._compiles = False
        self.recorded = self.replayed = 0
        self.seconds = 0.0

    def begin(self, denoiser: Denoiser, unet: nn.Module, execution: Execution) -> None:
        """A run begins; steps recorded with other weights, layers or settings go."""
        layers = denoiser.state.weights
        tensors = [t for name, t in unet.named_parameters() if ".lora_" not in name]
        tensors += [t for layer in layers.values() for t in layer.memory]
        tensors += denoiser.state.arranged.memory
        kind = execution.recorded, execution.compiled, tuple(layers)
        kind += denoiser.prefix, denoiser.shares_embedding
        now = kind, tuple((t.data_ptr(), t.shape, t.dtype) for t in tensors)
        if now != self._for:
            self.clear()
            # Addresses are told apart while what lies there lives; layers hold tables of their own.
            self._for, self._kept = now, (tensors, dict(layers))
            self._compiles = execution.compiled and self.uncompiled is None
        self.begin_again()

    def begin_again(self) -> None:
        """A run begins with the weights, layers and settings of the last one."""
        if len(self.features) > MOST_SHAPES:
            kept = self._for, self._kept
            self.clear()
            self._for, self._kept = kept
        self.recorded = self.replayed = 0
        self.seconds = 0.0

    def clear(self) -> None:
        """Drop every step, and the memory that they share."""
        self._passes.clear()
        self._for = self._kept = ()
        self._recorder, self.text, self.features = Recorder(self._device), {}, {}

    def report(self) -> dict[str, Any]:
        """What the run in progress recorded and replayed, for its summary."""
        failure = self.failure
        if failure is None and not self._recorder.records:
            failure = self.uncompiled  # and no steps are recorded either
        kind = {"used": failure is None, "reason": failure or self._kind()}
        done = {"recorded": self.recorded, "replayed": self.replayed, "seconds": self.seconds}
        return {**kind, **done, "bytes": self._recorder.bytes}

    def _kind(self) -> str:
        made = [("compiled", self._compiles), ("recorded", self._recorder.records)]
        apart = self._compiles and not all(it.compiles for it in self._passes.values())
        which = "steps without gradients" if apart and not self._recorder.records else "steps"
        told = f"{which} are " + " and ".join(name for name, done in made if done)
        return told if self.uncompiled is None else f"{told}; {self.uncompiled}"

    def run(
        self,
        denoiser: Denoiser,
        inputs: UNetInputs,
        rows: Rows,
        table: RowTable,
        cache: FeatureCache | None,
    ) -> Tensor:
        """Predictions (batch, C, H, W); ``inputs`` has its text, whose keys and values are made.

        ``rows``: of a table of this one's key.
        """
        shares = None if table.share is None else table.share.shape
        key = table.key, shares, None if cache is None else cache.cut, shape_of(inputs)
        step = self._take(key, inputs, lambda: _Step.of(denoiser, rows, table, cache))
        step.function.load(table)
        self._compute(step)
        if cache is not None:  # what the recorded code told the cache of its time
            own = step.function.cache
            cache.buffer, cache.hidden_channels = own.buffer, own.hidden_channels
            cache.fill(table.deep_rows)
        return step.outputs[0].clone()

    def call(
        self,
        function: Callable[[UNetInputs], Outputs],
        inputs: UNetInputs,
        key: Hashable,
        compiles: bool = True,
    ) -> Outputs:
        """What ``function`` gives; all that it does is told by ``key`` and the inputs' shapes.

        ``compiles`` False keeps torch.compile, which takes no gradients inside, away from it.
        """
        done = self._take((key, shape_of(inputs)), inputs, lambda: function)
        done.compiles = compiles
        self._compute(done)
        return tuple(None if out is None else out.clone() for out in done.outputs)

    def _take(self, key: Hashable, inputs: UNetInputs, make: Callable[[], Any]) -> Pass:
        """The pass of this key, with the arguments of the call; ``make`` gives its function."""
        known = self._passes.pop(key, None) or Pass(make(), Pass.own(inputs))
        self._passes[key] = known
        while len(self._passes) > MOST_PASSES:
            self._passes.popitem(last=False)
        known.load(inputs)
        return known

    def _compute(self, it: Pass) -> None:
        if it.outputs is not None and it.replay is None and self.failure is None:
            self._record(it)
        if it.replay is None:
            it.compute()
        else:
            it.replay()
            self.replayed += 1

    def _record(self, it: Pass) -> None:
        started = time.perf_counter()
        if self._compiles and it.compiles:
            try:
                it.compile()
            except Exception as error:  # of a compiler, whatever it raises: the function has run
                self.uncompiled = f"compiling failed: {error}".splitlines()[0]
                self._compiles = False
        try:
            it.replay = self._recorder.record(it.compute)
            self.recorded += 1
        except RuntimeError as error:
            self.failure = f"recording failed: {error}".splitlines()[0]
        self.seconds += time.perf_counter() - started
