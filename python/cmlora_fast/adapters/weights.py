"""Weights of the adapted layers for every adapter subset of a run: folded, or applied beside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor, nn

from ..ops.tensors import fingerprint
from .delta import DeltaLayer
from .execution import Execution
from .folded import FoldedLayer
from .folds import Folds, FoldSlot
from .peft import AdaptedLayer, LoadedAdapters

__all__ = ["WeightReport", "WeightStore"]

# Folded weights may take this share of the memory that is free without them: the rest is left to
# activations and caches.
MEMORY_SHARE = 0.5

Subset = tuple[str, ...]
LayerWeights = FoldedLayer | DeltaLayer


@dataclass(frozen=True)
class WeightReport:
    """How the weights run.

    Args:
        mode: "fold", "delta", "mixed" or "base".
        reason: Why.
        bytes: Memory beside the pipeline's own, folds kept from earlier calls included.
        seconds: What making them took in this call.
    """

    mode: str
    reason: str
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True)
class _Delta:
    key: tuple
    tensors: tuple[Tensor, ...]  # kept alive: the key holds their identities
    weights: DeltaLayer


class WeightStore:
    """Folded or slab weights per layer, kept across calls and revalidated at each."""

    def __init__(self) -> None:
        self._folds = Folds()
        self._deltas: dict[str, _Delta] = {}
        self.report = WeightReport("base", "no adapter is active", 0)

    def prepare(
        self,
        adapters: LoadedAdapters,
        subsets: Sequence[Subset],
        scale: float,
        execution: Execution,
    ) -> dict[str, LayerWeights]:
        """Weights by layer name for rows that carry one of ``subsets``.

        Args:
            adapters: What ``read_adapters`` found.
            subsets: Distinct adapter subsets of the run; rows refer to them by position.
            scale: Multiplies every adapter (``cross_attention_kwargs["scale"]``).
            execution: How the run executes; a static one has its folds stacked.
        """
        started, static = time.perf_counter(), execution.static
        layers = [layer for layer in adapters.layers if any(_members(layer, s) for s in subsets)]
        need = _fold_bytes(layers, subsets)
        fold, limit, reason = self._policy(layers, sum(need.values()), len(subsets), execution)
        wanted = {} if not fold else _stack_bytes(layers, len(subsets)) if static else need
        self._folds.make_room(wanted, limit if fold and not static else 0, adapters.loaded)
        deltas, self._deltas = self._deltas, {}
        weights: dict[str, LayerWeights] = {}
        for layer in layers:
            if fold and _foldable(layer):
                members = [_members(layer, subset) for subset in subsets]
                weights[layer.name] = self._folds.layer(layer, members, scale, static)
            else:
                delta = _delta(layer, subsets, scale, static, deltas.get(layer.name))
                self._deltas[layer.name] = delta
                weights[layer.name] = delta.weights
        self.report = self._report(len(weights), reason, time.perf_counter() - started)
        return weights

    def keep(self) -> None:
        """A call runs with the weights of the last one, which took no time."""
        self.report = replace(self.report, seconds=0.0)

    def clear(self) -> None:
        """Drop every weight that was built."""
        self._folds.clear()
        self._deltas = {}

    def _policy(
        self, layers: Sequence[AdaptedLayer], need: int, subsets: int, execution: Execution
    ) -> tuple[bool, int, str]:
        """Whether to fold, how many bytes folds may take, and why."""
        if not layers:
            return False, 0, "no adapter is active"
        device = layers[0].base.weight.device
        free, mode = _free_bytes(device) + self._folds.bytes, execution.weights
        limit = int(MEMORY_SHARE * free)
        if mode != "auto":
            return mode == "fold", limit, f'weights="{mode}"'
        if execution.gradients and device.type == "cpu":
            return False, limit, "rows share one product, and gradients need the memory"
        sizes = f"{need / 2**20:.0f} MiB for {subsets} subset(s), limit {limit / 2**20:.0f} MiB"
        if need <= limit:
            return True, limit, f"folding costs nothing per step and fits: {sizes}"
        return False, limit, f"folded weights would not fit: {sizes} (half of the free memory)"

    def _report(self, layers: int, reason: str, seconds: float) -> WeightReport:
        unfolded = len(self._deltas)
        size = self._folds.bytes + sum(delta.weights.bytes for delta in self._deltas.values())
        if unfolded in (0, layers):
            mode = "base" if not layers else "delta" if unfolded else "fold"
            return WeightReport(mode, reason, size, seconds)
        reason += f"; {unfolded} layer(s) have a base that cannot be folded"
        return WeightReport("mixed", reason, size, seconds)


def _members(layer: AdaptedLayer, subset: Subset) -> Subset:
    """The adapters of a subset that touch the layer."""
    return tuple(name for name in subset if name in layer.adapters)


def _foldable(layer: AdaptedLayer) -> bool:
    weight = getattr(layer.base, "weight", None)
    plain = type(layer.base) in (nn.Linear, nn.Conv2d) and type(weight) in (nn.Parameter, Tensor)
    zeros = getattr(layer.base, "padding_mode", "zeros") == "zeros"
    return plain and zeros and weight.is_floating_point()


def _fold_bytes(layers: Sequence[AdaptedLayer], subsets: Sequence[Subset]) -> dict[FoldSlot, int]:
    """What folding takes, by layer and adapters; subsets that agree on a layer share its fold."""
    return {
        (layer.name, members): layer.base.weight.numel() * layer.base.weight.element_size()
        for layer in layers
        if _foldable(layer)
        for members in (_members(layer, subset) for subset in subsets)
        if members
    }


def _stack_bytes(layers: Sequence[AdaptedLayer], subsets: int) -> dict[FoldSlot, int]:
    """The same of folds in stacks: each subset has a place in every layer."""
    return {
        (layer.name, i): layer.base.weight.numel() * layer.base.weight.element_size()
        for layer in layers
        if _foldable(layer)
        for i in range(subsets)
    }


def _delta(
    layer: AdaptedLayer,
    subsets: Sequence[Subset],
    scale: float,
    static: bool,
    kept: _Delta | None,
) -> _Delta:
    """The layer's adapters beside its base; ``kept`` if it is still right."""
    tensors = [layer.base.weight]
    for adapter in layer.adapters.values():
        tensors += [adapter.a, adapter.b]
    scalings = tuple((name, a.scaling, a.contents) for name, a in layer.adapters.items())
    key = (id(layer.module), tuple(subsets), scale, static, scalings, fingerprint(*tensors))
    if kept is not None and kept.key == key:
        return kept
    return _Delta(key, tuple(tensors), DeltaLayer(layer, subsets, scale, static))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
