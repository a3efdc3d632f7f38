"""A file's updates in one form: per module a pair of factors, its scale, DoRA's magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from .factors import factors_of, shaped
from .file import AlphaPatterns, adapter_config
from .fit import flat_names, layers_per_block
from .layouts import COMPONENTS, place
from .source import Source

__all__ = ["Alphas", "Names", "Update", "read_update"]


@dataclass(frozen=True)
class Update:
    """ΔW = alpha / R · B A of one module: a (R, in, ...), b (out, R, ...)."""

    component: str
    name: str
    a: Tensor
    b: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def scale(self) -> float:
        return self.alpha / len(self.a)


class Names:
    """The models' own names for the layers that files name in their ways."""

    def __init__(self, models: Mapping[str, nn.Module]):
        self._depth = layers_per_block(models)
        self.tables: dict[str, dict[str, tuple[str, nn.Module]]] = {
            part: {
                name.replace(".base_layer", "").replace(".", "_"): (
                    name.replace(".base_layer", ""),
                    module,
                )
                for name, module in model.named_modules()
                if ".lora_" not in name and type(module) in (nn.Linear, nn.Conv2d)
            }
            for part, model in models.items()
        }

    def find(self, component: str, name: str) -> tuple[str, nn.Module] | None:
        table = self.tables.get(component, {})
        names = flat_names(component, name, self._depth)
        return next((table[n] for n in names if n in table), None)


class Alphas:
    """Scale of an update: its own alpha, else that of a configuration, else its rank's."""

    def __init__(self, source: Source):
        if source.config:  # PEFT's, of the one model that the folder is for
            known = ("lora_alpha", "alpha_pattern", "use_rslora")
            given = {k: source.config[k] for k in known if k in source.config}
            config: dict[str, Any] = {f"{c}.{k}": v for c in COMPONENTS for k, v in given.items()}
        else:
            config = adapter_config(source.metadata)
        self._patterns = {part: AlphaPatterns(config, part) for part in COMPONENTS}
        self._stable = {part: bool(config.get(f"{part}.use_rslora")) for part in COMPONENTS}

    def scale(self, component: str, name: str, own: Tensor | None, rank: int | None) -> float:
        """``rank`` None: the update has no alpha."""
        if rank is None:
            return 1.0
        alpha = self.alpha(component, name, own)
        if alpha is None:
            return 1.0
        return alpha / (sqrt(rank) if self._stable.get(component) else rank)

    def alpha(self, component: str, name: str, own: Tensor | None) -> float | None:
        if own is not None:
            return float(own.double().max())
        patterns = self._patterns.get(component)
        return patterns.alpha(name) if patterns else None


def read_update(
    stem: str, parts: Mapping[str, Tensor], names: Names, alphas: Alphas
) -> tuple[Update | None, str]:
    """One update as the models have it; else None and why it does not fit.

    Args:
        stem: What its keys have in common.
        parts: Role -> tensor, as ``layouts.parse`` has them.

    Raises:
        ValueError: Shapes that do not go together.
    """
    component, given = place(stem)
    found = names.find(component, given)
    if found is None:
        if component not in names.tables:
            return None, f"{stem}: this model has no {component}"
        return None, f"{stem}: this model's {component} has no such layer"
    name, module = found
    factors = factors_of(parts)
    weight = module.weight
    pair = shaped(factors.a, factors.b, weight.shape)
    if pair is None:
        shapes = f"{list(factors.a.shape)} and {list(factors.b.shape)}"
        return None, f"{stem} {shapes}: expected factors of a weight {list(weight.shape)}"
    scale = alphas.scale(component, name, parts.get("alpha"), factors.rank)
    a, b = (_like(t, weight) for t in pair)
    magnitude = parts.get("magnitude")
    if magnitude is not None:
        if magnitude.numel() != len(weight) or (
            magnitude.ndim > 1 and len(magnitude) == 1 < len(weight) and magnitude.ndim == 2
        ):
            told = (
                f"{list(magnitude.shape)}: expected a magnitude per output, {len(weight)} numbers"
            )
            return None, f"{stem}: DoRA with {told}"
        shape = (len(weight),) if weight.ndim == 2 else (1, len(weight), 1, 1)
        magnitude = _like(magnitude.reshape(shape), weight)
    return Update(component, name, a, b, scale * len(a), magnitude), ""


def _like(tensor: Tensor, weight: Tensor) -> Tensor:
    """In the model's own dtype, unless its base is packed or of eight bits."""
    wide = weight.dtype.is_floating_point and weight.dtype.itemsize > 1
    return tensor.to(weight.dtype if wide else torch.float32).contiguous()
