"""Steps that are computed once and replayed: on a GPU as CUDA graphs.

A step reads nothing but memory that stays: its own copies of the call's arguments, the weights, the
text's keys and values, the feature cache and the row tables. A replay therefore is a copy of the
arguments and one launch, whatever adapters and rows the tables name by then.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from .cache import FeatureCache
from .forward import Denoiser
from .inputs import UNetInputs
from .rows import Chunk, DeepTable, StepRows

__all__ = ["StepGraphs", "plain_tensors", "why_not_recorded"]

MOST_STEPS = 12  # kept; CMLoRA needs three per shape of the latents
MOST_SHAPES = 4  # of feature caches; more of them, and everything is recorded anew
PLAIN = (AttnProcessor, AttnProcessor2_0)  # read text by its keys and values alone
# Arguments that a step reads; the others it does not use once it has its text.
READ = ("sample", "timestep", "raw_text", "class_labels", "timestep_cond", "added",
        "down_residuals", "mid_residual", "pooled")  # fmt: skip

Function = Callable[[], None]


def why_not_recorded(unet: nn.Module, inputs: UNetInputs, max_rows: int | None) -> str | None:
    """Why the steps of a run cannot be replayed: what they do beside kernels on memory that stays.

    None if they can.
    """
    if max_rows is not None:
        return "max_rows cuts steps into chunks"
    if inputs.attention_kwargs is not None:
        return f"the UNet was called with attention arguments {sorted(inputs.attention_kwargs)}"
    if torch.is_autocast_enabled(unet.device.type):
        return "autocast is on"
    for name, module in unet.named_modules():
        if hasattr(module, "_hf_hook"):
            return f"accelerate moves the weights of {name or 'the UNet'}"
        if name and (module._forward_hooks or module._forward_pre_hooks):
            return f"{name} has forward hooks"
    for name, value in (inputs.added or {}).items():
        if not isinstance(value, Tensor):
            return f"the UNet was called with {name} that is no tensor"
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and (
            type(module.processor) not in PLAIN or (module.is_cross_attention and module.norm_cross)
        ):
            return f"{name} reads text by {type(module.processor).__name__}"
    return None


def plain_tensors() -> AbstractContextManager:
    """Tensors made inside may be written to in any mode; ``torch.inference_mode`` makes others."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    return stack


@dataclass
class _Step:
    """A step of one kind and shape, on memory of its own. ``replay`` None: not recorded yet."""

    denoiser: Denoiser
    inputs: UNetInputs
    chunk: Chunk
    weights: Tensor | None
    cache: FeatureCache | None
    blend: Callable[[Tensor, Tensor | None], Tensor]
    out: Tensor | None = None
    replay: Function | None = None

    def load(self, inputs: UNetInputs, rows: StepRows, weights: Tensor | None) -> None:
        """Take over the arguments of a call."""
        for name in READ:
            _copy(getattr(self.inputs, name), getattr(inputs, name))
        if isinstance(rows.deep, DeepTable):
            _copy(self.chunk.step.deep.table, rows.deep.table)
        _copy(self.weights, weights)

    def compute(self) -> None:
        """The step, from its own memory into ``out``."""
        try:
            noise = self.denoiser(self.inputs, self.chunk, self.cache)
        finally:
            self.denoiser.state.rows = None
        noise = self.blend(noise, self.weights)
        if self.out is None:
            self.out = torch.empty_like(noise)
        self.out.copy_(noise)


class StepGraphs:
    """The recorded steps of one UNet, for one set of weights.

    A step of a new kind or shape is computed; its second time it is recorded; from then on it is
    replayed. The one unused for longest goes where there are too many. A recording that fails ends
    recording, with the reason in ``failure``.

    Args:
        device: The UNet's.
        blend: Sum of predictions (rows, C, H, W) by shares, or as they are for None.
        text: Memory of the keys and values, see ``LayerState.text_memory``.
        features: Memory of the feature caches, see ``FeatureCache.buffers``.
    """

    def __init__(self, device: torch.device, blend: Callable[..., Tensor]):
        self._device, self._blend = device, blend
        self._steps: OrderedDict[Hashable, _Step] = OrderedDict()
        self._for: tuple = ()
        self._kept: tuple = ()
        self._recorder = Recorder(device)
        self.text: dict[tuple, Tensor] = {}
        self.features: dict[tuple, Tensor] = {}
        self.failure: str | None = None
        self.recorded = self.replayed = 0
        self.seconds = 0.0

    def begin(self, denoiser: Denoiser, unet: nn.Module, setting: Hashable) -> None:
        """A run begins; steps recorded with other weights, layers or ``setting`` go."""
        layers = denoiser.state.weights
        tensors = [t for name, t in unet.named_parameters() if ".lora_" not in name]
        tensors += [t for layer in layers.values() for t in layer.memory]
        kind = setting, tuple(layers), denoiser.prefix, denoiser.shares_embedding
        now = kind, tuple((t.data_ptr(), t.shape, t.dtype) for t in tensors)
        if now != self._for or len(self.features) > MOST_SHAPES:
            self.clear()
            # Addresses are told apart while what lies there lives; layers hold tables of their own.
            self._for, self._kept = now, (tensors, dict(layers))
        self.recorded = self.replayed = 0
        self.seconds = 0.0

    def clear(self) -> None:
        """Drop every step, and the memory that they share."""
        self._steps.clear()
        self._for = self._kept = ()
        self._recorder, self.text, self.features = Recorder(self._device), {}, {}

    def report(self) -> dict[str, Any]:
        """What the run in progress recorded and replayed, for its summary."""
        kind = {"used": self.failure is None, "reason": self.failure or "steps are recorded"}
        done = {"recorded": self.recorded, "replayed": self.replayed, "seconds": self.seconds}
        return {**kind, **done, "bytes": self._recorder.bytes}

    def run(
        self,
        denoiser: Denoiser,
        inputs: UNetInputs,
        rows: StepRows,
        weights: Tensor | None,
        cache: FeatureCache | None,
    ) -> Tensor:
        """Predictions (batch, C, H, W); ``inputs`` has its text, whose keys and values are made."""
        key = _key(inputs, rows, weights, cache)
        step = self._steps.pop(key, None)
        known = step is not None
        if not known:
            step = self._new(denoiser, inputs, rows, weights, cache)
        self._steps[key] = step
        while len(self._steps) > MOST_STEPS:
            self._steps.popitem(last=False)
        step.load(inputs, rows, weights)
        if known and step.replay is None and self.failure is None:
            self._record(step)
        if step.replay is None:
            step.compute()
        else:
            step.replay()
            self.replayed += 1
        if cache is not None:  # what the recorded code told the cache of its time
            cache.buffer, cache.hidden_channels = step.cache.buffer, step.cache.hidden_channels
            cache.filled.update(step.chunk.deep_rows)
        return step.out.clone()

    def _new(self, denoiser, inputs, rows, weights, cache) -> _Step:
        deep = rows.deep
        if isinstance(deep, DeepTable):
            deep = DeepTable(deep.table.clone(), deep.samples, deep.runs)
        own = {name: _own(getattr(inputs, name), inputs.sample.device) for name in READ}
        rows = replace(rows, deep=deep)
        chunk = Chunk(rows, 0, rows.count, inputs.text, inputs.sample.device)
        weights = None if weights is None else weights.clone()
        if cache is not None:
            cache = replace(cache, filled=set())
        own_inputs = replace(inputs, **own, arguments={})
        return _Step(denoiser, own_inputs, chunk, weights, cache, self._blend)

    def _record(self, step: _Step) -> None:
        started = time.perf_counter()
        try:
            step.replay = self._recorder.record(step.compute)
            self.recorded += 1
        except RuntimeError as error:
            self.failure = f"recording failed: {error}".splitlines()[0]
        self.seconds += time.perf_counter() - started


class Recorder:
    """Records functions as CUDA graphs that share one pool of memory.

    Sharing is sound as no memory of the pool outlives a replay, and replays follow one another.
    """

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0
        self._pool = self._stream = None

    def record(self, function: Function) -> Function:
        """A function that does on the device what ``function``, which has run before, does."""
        if self.device.type != "cuda":
            return function
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()
            graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            torch.cuda.empty_cache()  # as the capture does first
            before = torch.cuda.memory_reserved()
            try:
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    function()
            finally:
                torch.cuda.set_stream(outside)  # an aborted capture leaves its own in place
            self.bytes += max(0, torch.cuda.memory_reserved() - before)
        return graph.replay


def _key(
    inputs: UNetInputs, rows: StepRows, weights: Tensor | None, cache: FeatureCache | None
) -> Hashable:
    deep = rows.deep
    if isinstance(deep, DeepTable):
        deep = ("by table", deep.samples, deep.runs)
    shapes = tuple(_shape(getattr(inputs, name)) for name in READ)
    return (
        (rows.groups, rows.batch, deep, inputs.odd_size, shapes, _shape(inputs.text)),
        _shape(weights),
        None if cache is None else cache.cut,
    )


def _shape(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.stride()
    if isinstance(value, dict):
        return tuple((key, _shape(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_shape, value))
    return None if value is None else type(value)


def _own(value: Any, device: torch.device) -> Any:
    """A copy on the device; numbers, which steps change, become tensors."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        kind = torch.float64 if isinstance(value, float) else torch.int64  # as diffusers has it
        return torch.full((), value, dtype=kind, device=device)
    if isinstance(value, dict):
        return {key: _own(item, device) for key, item in value.items()}
    return type(value)(_own(item, device) for item in value)


def _copy(mine: Any, given: Any) -> None:
    """Write what was given over a copy that ``_own`` made."""
    if isinstance(mine, Tensor):
        if not isinstance(given, Tensor):
            mine.fill_(given)
        elif given.is_cpu and given.numel() == 1:
            mine.fill_(given.item())  # a copy from the host would wait for the device
        else:
            mine.copy_(given)
    elif isinstance(mine, dict):
        for key, item in mine.items():
            _copy(item, given[key])
    elif isinstance(mine, list | tuple):
        for item, other in zip(mine, given, strict=True):
            _copy(item, other)
