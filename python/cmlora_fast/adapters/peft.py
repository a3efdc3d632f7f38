"""Reads the layers that PEFT put into a model; refuses what cannot be computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from peft.tuners import loha, lokr
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as peft_lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .contents import alike, is_normed, norm_bits
from .forms import AnyAdapter, FactoredAdapter, LayerAdapter
from .kinds import DORA, WITH_BIAS, kind_of_layer

__all__ = ["AdaptedLayer", "LayerAdapter", "LoadedAdapters", "read_adapters"]


@dataclass(frozen=True)
class AdaptedLayer:
    """A PEFT layer with the active adapters that touch it, in order.

    ``contents`` changes whenever the numbers in the base weight do.
    """

    name: str
    module: nn.Module
    base: nn.Module
    adapters: dict[str, AnyAdapter]
    contents: int = 0

    @property
    def kinds(self) -> list[str]:
        """Of those of its adapters that cannot run beside the base: the layer is folded."""
        return sorted({a.kind for a in self.adapters.values() if a.kind is not None})


@dataclass(frozen=True)
class LoadedAdapters:
    """Active adapters of non-zero weight in ``set_adapters`` order, and every adapted layer.

    ``active`` has those of weight 0 too, ``loaded`` also those that are not active.
    """

    names: tuple[str, ...] = ()
    layers: tuple[AdaptedLayer, ...] = ()
    loaded: frozenset[str] = frozenset()
    active: tuple[str, ...] = ()
    _scaled: dict[tuple, LoadedAdapters] = field(default_factory=dict, compare=False, repr=False)

    def scaled(self, factors: Mapping[str, float]) -> LoadedAdapters:
        """The same with some adapters' scales multiplied; equal factors give the same object."""
        if not factors:
            return self
        key = tuple(factors.items())
        if key not in self._scaled:
            self._scaled.clear()
            self._scaled[key] = self._with(factors)
        return self._scaled[key]

    def _with(self, factors: Mapping[str, float]) -> LoadedAdapters:
        layers = tuple(
            replace(
                layer,
                adapters={k: _scaled(a, factors.get(k, 1.0)) for k, a in layer.adapters.items()},
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, _scaled={})


def _scaled(adapter: AnyAdapter, factor: float) -> AnyAdapter:
    return replace(adapter, scaling=adapter.scaling * factor)


def read_adapters(model: nn.Module) -> LoadedAdapters:
    """The adapters that PEFT would compute in ``model`` right now.

    Raises:
        ValueError: An active adapter that is not computed (its kind is named), is fused into the
            weights, holds a NaN or infinity, or is DoRA of weight 0.
    """
    order: dict[str, bool] = {}
    found, loaded = [], set()
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        loaded.update(module._get_available_adapters())
        active = _active(module)
        _refuse(name, module, active)
        adapters = {key: _layer_adapter(module, key) for key in active}
        for key, adapter in adapters.items():
            order[key] = order.get(key, False) or adapter.scaling != 0
        found.append(AdaptedLayer(name, module, module.get_base_layer(), adapters))
    active = _ordered(model, order)
    names = tuple(key for key in active if order[key])
    layers = _with_contents([_without_zero(layer, names) for layer in found])
    return LoadedAdapters(names, layers, frozenset(loaded), tuple(active))


def _ordered(model: nn.Module, order: dict[str, bool]) -> list[str]:
    """``set_adapters`` order: of the first layer that lists them, whether it has them or not."""
    names: dict[str, None] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters:
            names.update(dict.fromkeys(module.active_adapters))
            if all(key in names for key in order):
                break
    return [key for key in names if key in order]


def _active(module: BaseTunerLayer) -> list[str]:
    if module.disable_adapters:
        return []
    available = module._get_available_adapters()
    return [name for name in module.active_adapters if name in available]


def _layer_adapter(module: BaseTunerLayer, key: str) -> AnyAdapter:
    scaling = float(module.scaling[key])
    if not isinstance(module, LoraLayer):
        found = {name: getattr(module, name) for name in module.adapter_layer_names}
        factors = {name: tensors[key] for name, tensors in found.items() if key in tensors}
        return FactoredAdapter(kind_of_layer(type(module)), factors, scaling)
    b, magnitude = module.lora_B[key], None
    if key in module.lora_variant:
        magnitude = module.lora_magnitude_vector[key].weight
    return LayerAdapter(
        module.lora_A[key].weight, b.weight, scaling, magnitude=magnitude, bias=b.bias
    )


def _without_zero(layer: AdaptedLayer, names: tuple[str, ...]) -> AdaptedLayer:
    """Without adapters that add nothing; DoRA of scale 0 still sets its magnitudes."""
    for key, adapter in layer.adapters.items():
        if key not in names and adapter.magnitude is not None:
            raise ValueError(
                f"adapter {key!r}: DoRA of weight 0, which PEFT runs with its magnitudes; expected "
                "another weight (or leave it out of pipe.set_adapters)"
            )
    kept = {
        key: adapter
        for key, adapter in layer.adapters.items()
        if key in names and (adapter.scaling != 0 or adapter.magnitude is not None)
    }
    return AdaptedLayer(layer.name, layer.module, layer.base, kept)


def _refuse(name: str, module: BaseTunerLayer, active: list[str]) -> None:
    """Raise for anything in this layer that would not be computed rightly."""
    if getattr(module, "merged_adapters", None):
        fused = ", ".join(repr(key) for key in module.merged_adapters)
        raise ValueError(
            f"adapter {fused}: its weights are fused into layer {name!r}; expected unfused "
            "adapters: call pipe.unfuse_lora() first"
        )
    for key in active:
        kind = _kind(module, key)
        if kind is not None:
            raise ValueError(
                f"adapter {key!r}: layer {name!r} holds {kind}; expected LoRA, DoRA, LoHa "
                "or LoKr on a Linear or Conv2d layer (disable or delete this adapter)"
            )


_COMPUTED = tuple(cls for tuner in (peft_lora, loha, lokr) for cls in (tuner.Linear, tuner.Conv2d))


def _kind(module: BaseTunerLayer, key: str) -> str | None:
    """What ``key`` is in this layer if it is not computed."""
    own = f"{kind_of_layer(type(module))} ({type(module).__name__})"
    if type(module) not in _COMPUTED:
        return own
    if any(_active(m) for m in module.base_layer.modules() if isinstance(m, BaseTunerLayer)):
        return f"{own} around adapters of another kind"
    if getattr(module.get_base_layer(), "groups", 1) != 1:
        return "an adapter on a grouped convolution"
    if not isinstance(module, LoraLayer):
        drops = module.training and (module.rank_dropout[key] or module.module_dropout[key])
        return f"{own} with dropout in training mode" if drops else None
    variant = type(module.lora_variant.get(key)).__name__.removesuffix("Variant")
    if key in module.lora_variant and variant not in ("DoraLinear", "DoraConv2d"):
        return variant
    if key in module.lora_variant and module.lora_B[key].bias is not None:
        return f"{DORA} and {WITH_BIAS}"
    dropout = module.lora_dropout[key]
    if module.training and getattr(dropout, "p", 0) > 0:
        return "LoRA with dropout in training mode"
    return None


def _sums(layers: Sequence[AdaptedLayer]) -> dict[int, tuple[float, float]]:
    """Sum and norm of every adapter tensor, by identity.

    Versions do not tell of writes through ``.data``, which is how PEFT swaps adapters in place.
    """
    every = [t for layer in layers for a in layer.adapters.values() for t in a.tensors.values()]
    away = {id(t): [0.0, 0.0] for t in every if t.is_meta}  # offloaded: read by whoever brings it
    tensors = [t for t in every if not t.is_meta]
    if not tensors:
        return away
    flat = [tensor.detach() for tensor in tensors]
    sums = torch.stack([t.sum(dtype=torch.float32) for t in flat]).tolist()
    norms = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float32) for t in flat]).tolist()
    return away | {id(t): pair for t, *pair in zip(tensors, sums, norms, strict=True)}


def _with_contents(layers: Sequence[AdaptedLayer]) -> tuple[AdaptedLayer, ...]:
    """The layers with their adapters' contents filled in; raises for NaN and infinity."""
    sums = _sums(layers)
    for layer in layers:
        for key, adapter in layer.adapters.items():
            if not math.isfinite(adapter.scaling):
                raise ValueError(
                    f"adapter {key!r}: expected a finite weight; got {adapter.scaling} at "
                    f"{layer.name} (see pipe.set_adapters)"
                )
            for part, tensor in adapter.tensors.items():
                if not all(map(math.isfinite, sums[id(tensor)])) and not _finite(tensor):
                    raise ValueError(
                        f"adapter {key!r}: {layer.name}.{part} holds NaN or infinity; "
                        "expected finite numbers (reload or delete this adapter)"
                    )
    bases = _base_contents(layers)
    return tuple(
        replace(
            layer,
            adapters={
                key: replace(a, contents=tuple(n for t in a.tensors.values() for n in sums[id(t)]))
                for key, a in layer.adapters.items()
            },
            contents=bases.get(layer.name, 0),
        )
        for layer in layers
    )


def _base_contents(layers: Sequence[AdaptedLayer]) -> dict[str, int]:
    """Layer name -> bits of the norm of its base weight, of those that adapters touch."""
    weights = {layer.name: layer.base.weight for layer in layers if layer.adapters}
    bits = {}
    for group in alike(weight for weight in weights.values() if is_normed(weight)):
        bits |= zip(map(id, group), norm_bits(group).tolist(), strict=True)
    return {name: bits.get(id(weight), 0) for name, weight in weights.items()}


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())
