"""Weights of the adapted layers for every adapter subset of a run: folded, or applied beside."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
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
from .through import PeftLayer, runs_through_peft
from .wide import WideLayer, is_wide

__all__ = ["WeightReport", "WeightStore"]

# Folded weights may take this share of the memory that is free without them: the rest is left to
# activations and caches.
MEMORY_SHARE = 0.5

Subset = tuple[str, ...]
LayerWeights = FoldedLayer | DeltaLayer | WideLayer | PeftLayer


@dataclass(frozen=True)
class WeightReport:
    """How the weights run.

    Args:
        mode: "fold", "delta", "mixed", "base", or "peft" where PEFT's own forward runs.
        reason: Why.
        bytes: Memory beside the pipeline's own, folds kept from earlier calls included.
        seconds: What making them took in this call.
    """

    mode: str
    reason: str
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True)
class _Beside:
    key: tuple
    tensors: tuple[Tensor, ...]  # kept alive: the key holds their identities
    weights: DeltaLayer | WideLayer


class WeightStore:
    """Folded or slab weights per layer, kept across calls and revalidated at each."""

    def __init__(self) -> None:
        self._folds = Folds()
        self._beside: dict[tuple[str, ...], _Beside] = {}
        self.joined: dict[tuple[str, ...], LayerWeights] = {}
        self.report = WeightReport("base", "no adapter is active", 0)

    def prepare(
        self,
        adapters: LoadedAdapters,
        subsets: Sequence[Subset],
        scale: float,
        execution: Execution,
        joins: Sequence[tuple[str, ...]] = (),
    ) -> dict[str, LayerWeights]:
        """Weights by layer name for rows that carry one of ``subsets``; see also ``joined``.

        Args:
            adapters: What ``read_adapters`` found.
            subsets: Distinct adapter subsets of the run; rows refer to them by position.
            scale: Multiplies every adapter (``cross_attention_kwargs["scale"]``).
            execution: How the run executes; a static one has its folds stacked.
            joins: Linear layers that read one input. Those that are folded in stacks also run as
                one layer, by their names in ``joined``.
        """
        started, static = time.perf_counter(), execution.static
        every = [layer for layer in adapters.layers if any(_members(layer, s) for s in subsets)]
        aside = [layer for layer in every if _runs_aside(layer, static)]
        through = {layer.name: PeftLayer(layer, subsets, scale) for layer in aside}
        layers = [layer for layer in every if layer.name not in through]
        need = _fold_bytes(layers, subsets)
        fold, limit, reason = self._policy(layers, sum(need.values()), len(subsets), execution)
        folded = [layer for layer in layers if (fold or layer.kinds) and _foldable(layer)]
        kept = _stack_bytes(folded, len(subsets)) if static else _fold_bytes(folded, subsets)
        if not fold:
            _check_fits(folded, sum(kept.values()), limit)
        self._folds.make_room(kept, limit if fold and not static else 0, adapters.loaded)
        together = _joinable(layers, joins) if static else []
        self._folds.place(together if fold else [], len(subsets))
        weights: dict[str, LayerWeights] = {}
        for layer in folded:
            members = [_members(layer, subset) for subset in subsets]
            weights[layer.name] = self._folds.layer(layer, members, scale, static)
        others = [layer for layer in layers if layer.name not in weights]
        single, joined = _wide(others, together, limit) if static else ((), ())
        made = self._apart(others, single, joined, subsets, scale, static)
        weights |= {layer.name: made[layer.name,] for layer in others} | through
        weights = {layer.name: weights[layer.name] for layer in every}
        self.joined = self._folds.joined() | {n: w for n, w in made.items() if len(n) > 1}
        if folded and not fold:
            kinds = ", ".join(sorted({kind for layer in folded for kind in layer.kinds}))
            reason += f"; {len(folded)} layer(s) are folded, for they hold {kinds}"
        unlike = fold and bool(others)
        self.report = self._report(len(layers), len(others), len(through), reason, started, unlike)
        return weights

    def _apart(
        self,
        layers: Sequence[AdaptedLayer],
        single: Collection[str],
        joined: Sequence[tuple[AdaptedLayer, ...]],
        subsets: Sequence[Subset],
        scale: float,
        static: bool,
    ) -> dict[tuple[str, ...], DeltaLayer | WideLayer]:
        """Adapters beside their bases, by the names of the layers; those of the last call if they
        are still right.
        """
        kept, self._beside = self._beside, {}
        for group in (*((layer,) for layer in layers), *joined):
            names = tuple(layer.name for layer in group)
            wide = len(group) > 1 or names[0] in single
            tensors = _tensors(group)
            key = (wide, static, scale, tuple(subsets), *map(_state, group), fingerprint(*tensors))
            made = kept.get(names)
            if made is None or made.key != key:
                if wide:
                    weights = WideLayer(group, subsets, scale)
                else:
                    weights = DeltaLayer(group[0], subsets, scale, static)
                made = _Beside(key, tensors, weights)
            self._beside[names] = made
        return {names: beside.weights for names, beside in self._beside.items()}

    def keep(self) -> None:
        """A call runs with the weights of the last one, which took no time."""
        self.report = replace(self.report, seconds=0.0)

    def clear(self) -> None:
        """Drop every weight that was built."""
        self._folds.clear()
        self._beside, self.joined = {}, {}

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

    def _report(
        self, layers: int, apart: int, through: int, reason: str, started: float, unlike: bool
    ) -> WeightReport:
        """``apart``: of the layers, those whose adapters run beside their base; ``through``: how
        many more run through PEFT; ``unlike``: what is apart could not be folded."""
        seconds = time.perf_counter() - started
        beside = [beside.weights for beside in self._beside.values()]
        size = self._folds.bytes + sum(weights.bytes for weights in beside)
        wide = sum(len(n) for n, b in self._beside.items() if isinstance(b.weights, WideLayer))
        if wide:
            reason += f"; {wide} of {layers} layers run as one product with their adapters"
        if through:
            told = f"{through} layer(s) run through PEFT: others have hooks or weights there"
            reason, mode = (f"{reason}; {told}", "mixed") if layers else (told, "peft")
            return WeightReport(mode, reason, size, seconds)
        if apart in (0, layers):
            mode = "base" if not layers else "delta" if apart else "fold"
            return WeightReport(mode, reason, size, seconds)
        if unlike:
            reason += f"; {apart} layer(s) have a base that cannot be folded"
        return WeightReport("mixed", reason, size, seconds)


def _members(layer: AdaptedLayer, subset: Subset) -> Subset:
    """The adapters of a subset that touch the layer."""
    return tuple(name for name in subset if name in layer.adapters)


def _runs_aside(layer: AdaptedLayer, static: bool) -> bool:
    """Whether PEFT's forward runs, also where adapters need a fold that the base does not allow."""
    if runs_through_peft(layer):
        return True
    apart = bool(layer.kinds) and not _foldable(layer)
    if apart and static:  # PEFT would ask the host for the adapters of each row
        raise ValueError(
            f"{', '.join(layer.kinds)} in layer {layer.name!r}: its base is {type(layer.base)}, "
            "which cannot be folded; expected a Linear or Conv2d layer of plain floats"
        )
    return apart


def _check_fits(folded: Sequence[AdaptedLayer], need: int, limit: int) -> None:
    """Refuse what has to be folded and does not fit."""
    if need > limit:
        kinds = sorted({kind for layer in folded for kind in layer.kinds})
        raise ValueError(
            f"{', '.join(kinds)} in {len(folded)} layer(s) takes {need / 2**20:.0f} MiB of folded "
            f"weights; expected at most {limit / 2**20:.0f} MiB (half of the free memory): fewer "
            'adapters, or weights="fold"'
        )


def _foldable(layer: AdaptedLayer) -> bool:
    weight = getattr(layer.base, "weight", None)
    plain = type(layer.base) in (nn.Linear, nn.Conv2d) and type(weight) in (nn.Parameter, Tensor)
    zeros = getattr(layer.base, "padding_mode", "zeros") == "zeros"
    return plain and zeros and weight.is_floating_point()


def _joinable(
    layers: Sequence[AdaptedLayer], joins: Sequence[tuple[str, ...]]
) -> list[tuple[AdaptedLayer, ...]]:
    """Layers of the run that may share one product: every one of a join, and all may be folded."""
    fit = (la for la in layers if all(a.bias is None for a in la.adapters.values()))
    known = {layer.name: layer for layer in fit if _foldable(layer)}
    return [tuple(known[n] for n in names) for names in joins if known.keys() >= set(names)]


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


def _wide(
    layers: Sequence[AdaptedLayer], joins: Sequence[tuple[AdaptedLayer, ...]], limit: int
) -> tuple[set[str], list[tuple[AdaptedLayer, ...]]]:
    """Which run as one product with their adapters: names of single layers, and joined ones.

    None, where weights of their own would take more than ``limit`` bytes: two products then.
    """
    fit = {layer.name: layer for layer in layers if is_wide(layer)}
    bytes_of = (w.numel() * w.element_size() for w in (la.base.weight for la in fit.values()))
    if sum(bytes_of) > limit:
        return set(), []
    joined = [group for group in joins if all(layer.name in fit for layer in group)]
    return fit.keys() - {layer.name for group in joined for layer in group}, joined


def _tensors(layers: Sequence[AdaptedLayer]) -> tuple[Tensor, ...]:
    """All that the weights of layers are made of."""
    adapters = [adapter for layer in layers for adapter in layer.adapters.values()]
    factors = (t for adapter in adapters for t in adapter.tensors.values())
    return (*(layer.base.weight for layer in layers), *factors)


def _state(layer: AdaptedLayer) -> tuple:
    """What of a layer changes without a tensor of it doing so."""
    scalings = ((name, a.scaling, a.contents) for name, a in layer.adapters.items())
    return (id(layer.module), layer.contents, *scalings)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
