"""Functions on memory that stays: computed, recorded the second time, replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .inputs import UNetInputs

__all__ = ["Outputs", "Pass", "Recorder", "copy_into", "shape_of"]

# Arguments that a pass reads; the others it does not use once it has its text.
READ = ("sample", "timestep", "raw_text", "class_labels", "timestep_cond", "added",
        "down_residuals", "mid_residual", "pooled")  # fmt: skip

Function = Callable[[], None]
Outputs = tuple[Tensor | None, ...]


@dataclass
class Pass:
    """A function of a UNet call's arguments, on memory of its own.

    Args:
        function: What it computes; without gradients in what it returns.
        inputs: Its arguments, see ``own``.
        compiles: Whether torch.compile may be asked.
        compiled: What it made of it, if it was.
        outputs: What it computed last; None: nothing yet.
        replay: Computes it again; None: not recorded yet.
    """

    function: Callable[[UNetInputs], Outputs]
    inputs: UNetInputs
    compiles: bool = True
    compiled: Callable[[UNetInputs], Outputs] | None = None
    outputs: Outputs | None = None
    replay: Function | None = None

    @staticmethod
    def own(inputs: UNetInputs) -> UNetInputs:
        """Copies on the device of all that is read."""
        device = inputs.sample.device
        copies = {name: _own(getattr(inputs, name), device) for name in READ}
        return replace(inputs, **copies, arguments={})

    def load(self, inputs: UNetInputs) -> None:
        """Take over the arguments of a call."""
        for name in READ:
            copy_into(getattr(self.inputs, name), getattr(inputs, name))

    def compile(self) -> None:
        """Let torch.compile make one graph of it, once it has been computed."""
        self.compiled = torch.compile(_apart(self.function), fullgraph=True, dynamic=False)
        try:
            self.compute()  # this compiles
        except Exception:
            self.compiled = None
            raise

    def compute(self) -> None:
        """The function, from its own memory into ``outputs``."""
        made = (self.compiled or self.function)(self.inputs)
        if self.outputs is None:
            self.outputs = tuple(None if t is None else torch.empty_like(t) for t in made)
        for mine, tensor in zip(self.outputs, made, strict=True):
            if mine is not None:
                mine.copy_(tensor)


class Recorder:
    """Records functions as CUDA graphs that share one pool of memory.

    Sharing is sound as no memory of the pool outlives a replay, and replays follow one another.
    """

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0
        self._pool = self._stream = None

    @property
    def records(self) -> bool:
        """Whether there is anything to record: elsewhere functions run again as they are."""
        return self.device.type == "cuda"

    def record(self, function: Function) -> Function:
        """A function that does on the device what ``function``, which has run before, does."""
        if not self.records:
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


def _apart(function: Callable[[UNetInputs], Outputs]) -> Callable[[UNetInputs], Outputs]:
    """The function behind code of its own: torch keeps eight graphs of a code, and then no more."""

    def call(inputs: UNetInputs) -> Outputs:
        return function(inputs)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


def shape_of(inputs: UNetInputs) -> Hashable:
    """What of a call's arguments is the same in every replay."""
    return (
        inputs.odd_size,
        tuple(_shape(getattr(inputs, name)) for name in READ),
        _shape(inputs.text),
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


def copy_into(mine: Any, given: Any) -> None:
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
            copy_into(item, given[key])
    elif isinstance(mine, list | tuple):
        for item, other in zip(mine, given, strict=True):
            copy_into(item, other)
