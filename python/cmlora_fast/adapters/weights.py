"""Weights of the adapted layers for every adapter subset of a run: folded, or applied beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from .folded import FoldedLayer
from .peft import AdaptedLayer, LoadedAdapters, fingerprint
from .unfolded import DeltaLayer

__all__ = ["WeightReport", "WeightStore"]

# Folded weights may take this share of the free memory: the rest is left to activations and caches.
MEMORY_SHARE = 0.5

Subset = tuple[str, ...]


@dataclass(frozen=True)
class WeightReport:
    """How the weights run: ``mode`` "fold", "delta", "mixed" or "base", why, and extra memory."""

    mode: str
    reason: str
    bytes: int


@dataclass
class _Entry:
    key: tuple
    tensors: tuple[Tensor, ...]  # kept alive: the key holds their identities
    weights: FoldedLayer | DeltaLayer


class WeightStore:
    """Folded or slab weights per layer, kept across calls and revalidated at each."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self.report = WeightReport("base", "no adapter is active", 0)

    def prepare(
        self, adapters: LoadedAdapters, subsets: Sequence[Subset], scale: float, mode: str
    ) -> dict[str, FoldedLayer | DeltaLayer]:
        """Weights by layer name for rows that carry one of ``subsets``.

        Args:
            adapters: What ``read_adapters`` found.
            subsets: Distinct adapter subsets of the run; rows refer to them by position.
            scale: Multiplies every adapter (``cross_attention_kwargs["scale"]``).
            mode: "auto", "fold" or "delta".
        """
        layers = [layer for layer in adapters.layers if layer.adapters]
        fold, reason = _policy(layers, subsets, mode)
        entries = {}
        for layer in layers:
            folds = fold and _foldable(layer)
            key, tensors = _key(layer, subsets, scale, folds)
            entry = self._entries.get(layer.name)
            if entry is None or entry.key != key:
                build = FoldedLayer if folds else DeltaLayer
                entry = _Entry(key, tensors, build(layer, subsets, scale))
            entries[layer.name] = entry
        self._entries = entries
        self.report = _report(entries, reason)
        return {name: entry.weights for name, entry in entries.items()}

    def clear(self) -> None:
        """Drop every weight that was built."""
        self._entries = {}


def _foldable(layer: AdaptedLayer) -> bool:
    weight = getattr(layer.base, "weight", None)
    plain = type(layer.base) in (nn.Linear, nn.Conv2d) and type(weight) in (nn.Parameter, Tensor)
    zeros = getattr(layer.base, "padding_mode", "zeros") == "zeros"
    return plain and zeros and weight.is_floating_point()


def _key(
    layer: AdaptedLayer, subsets: Sequence[Subset], scale: float, folds: bool
) -> tuple[tuple, tuple[Tensor, ...]]:
    tensors = [layer.base.weight]
    for adapter in layer.adapters.values():
        tensors += [adapter.a, adapter.b]
    scalings = tuple((name, a.scaling, a.contents) for name, a in layer.adapters.items())
    key = (id(layer.module), tuple(subsets), scale, folds, scalings, fingerprint(*tensors))
    return key, tuple(tensors)


def _policy(
    layers: Sequence[AdaptedLayer], subsets: Sequence[Subset], mode: str
) -> tuple[bool, str]:
    """Whether to fold, and why."""
    if mode != "auto":
        return mode == "fold", f'weights="{mode}"'
    if not layers:
        return False, "no adapter is active"
    need = sum(_fold_bytes(layer, subsets) for layer in layers if _foldable(layer))
    free = _free_bytes(layers[0].base.weight.device)
    limit = int(MEMORY_SHARE * free)
    sizes = f"{need / 2**20:.0f} MiB for {len(subsets)} subset(s), limit {limit / 2**20:.0f} MiB"
    if need <= limit:
        return True, f"folding costs nothing per step and fits: {sizes}"
    return False, f"folded weights would not fit: {sizes} (half of the free memory)"


def _fold_bytes(layer: AdaptedLayer, subsets: Sequence[Subset]) -> int:
    touched = sum(any(name in layer.adapters for name in subset) for subset in subsets)
    return touched * layer.base.weight.numel() * layer.base.weight.element_size()


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _report(entries: dict[str, _Entry], reason: str) -> WeightReport:
    if not entries:
        return WeightReport("base", "no adapter is active", 0)
    weights = [entry.weights for entry in entries.values()]
    folded = sum(isinstance(weight, FoldedLayer) for weight in weights)
    size = sum(weight.bytes for weight in weights)
    if folded in (0, len(weights)):
        return WeightReport("fold" if folded else "delta", reason, size)
    reason += f"; {len(weights) - folded} layer(s) have a base that cannot be folded"
    return WeightReport("mixed", reason, size)
