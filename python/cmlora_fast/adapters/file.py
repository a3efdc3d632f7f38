"""What a LoRA file holds, read from its header: kind, naming, ranks, alphas, targets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from .header import Header, opened, read_header
from .kinds import kind_of_keys
from .layouts import COMPONENTS, KOHYA, place

__all__ = [
    "AlphaPatterns",
    "LoraFile",
    "LoraLayer",
    "adapter_config",
    "named_tensors",
    "non_finite",
    "read_lora",
]

_LORA_KEY = re.compile(
    r"^(.+?)(?:\.lora_(A|B|down|up)|(?:[._]lora|\.lora_linear_layer)\.(down|up))\.weight$"
)


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: its place, the two keys with their shapes, rank and alpha."""

    component: str
    name: str
    down_key: str
    up_key: str
    down: tuple[int, ...]
    up: tuple[int, ...]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down[0]


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file as its header describes it."""

    path: Path
    kind: str
    naming: str
    layers: tuple[LoraLayer, ...]
    other_keys: tuple[str, ...]
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def targets(self) -> dict[str, int]:
        """Component -> number of adapted layers."""
        parts = [layer.component for layer in self.layers]
        return {part: parts.count(part) for part in dict.fromkeys(parts)}


def read_lora(path: str | Path) -> LoraFile:
    """Read a file's header (and its alphas).

    Raises:
        ValueError: The file is missing, no safetensors file, or not whole.
    """
    path = Path(path)
    try:
        header = read_header(path)
        config = adapter_config(header.metadata) or _config_beside(path)
        layers, other = _layers(header.shapes, _alphas(path, header), config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LoraFile(
        path=path,
        kind=_kind(layers, header.shapes),
        naming=_naming(layers, header.shapes),
        layers=layers,
        other_keys=other,
        tensors=len(header.shapes),
        bytes=path.stat().st_size,
        dtypes=tuple(sorted(set(header.dtypes.values()))),
        metadata=header.metadata,
    )


def adapter_config(metadata: dict[str, str]) -> dict[str, Any]:
    """PEFT's configuration of the adapter, where diffusers has kept it in the metadata."""
    text = metadata.get("lora_adapter_metadata") or "{}"
    try:
        config = json.loads(text) or {}
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):  # diffusers could not load the file either
        raise ValueError(f"metadata: lora_adapter_metadata: expected an object; got {short(text)}")
    return config


def _config_beside(path: Path) -> dict[str, Any]:
    """What PEFT keeps in a file of its own, of the UNet."""
    config = path.with_name("adapter_config.json")
    if path.name != "adapter_model.safetensors" or not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text())
        return {f"unet.{key}": found[key] for key in ("lora_alpha", "alpha_pattern")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{config.name} beside it cannot be read: {error}") from None


def named_tensors(file: LoraFile) -> dict[str, Tensor] | None:
    """The tensors under keys that name their component; None: the file's own keys do.

    Those of PEFT's own files and of old attention processors name layers of the UNet alone.
    """
    stems = (layer.down_key for layer in file.layers)
    if all(stem.startswith((*KOHYA, *(f"{c}." for c in COMPONENTS))) for stem in stems):
        return None
    with opened(file.path) as tensors:
        found = {}
        for key in tensors.keys():
            name = key.removeprefix("base_model.model.")
            known = name.partition(".")[0] in COMPONENTS or name.startswith(tuple(KOHYA))
            found[name if known else f"unet.{name}"] = tensors.get_tensor(key)
        return found


def non_finite(path: str | Path) -> list[str]:
    """Keys of the tensors that hold a NaN or an infinity. Reads the whole file."""
    path = Path(path)
    try:
        with opened(path) as file:
            tensors = ((key, file.get_tensor(key)) for key in file.keys())
            return [
                key
                for key, tensor in tensors
                if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()
            ]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _alphas(path: Path, header: Header) -> dict[str, float]:
    keys = [key for key in header.shapes if key.endswith(".alpha")]
    for key in keys:
        if 0 in header.shapes[key] or header.dtypes[key] == "C64":
            what = f"{header.dtypes[key]} {list(header.shapes[key])}"
            raise ValueError(f"{key}: expected a number; got {what}")
    if not keys:
        return {}
    with opened(path) as file:
        return {
            key.removesuffix(".alpha"): float(file.get_tensor(key).to(torch.float64).max())
            for key in keys
        }


class AlphaPatterns:
    """A component's alphas as PEFT reads them: the first whose name ends a layer's, else one.

    A tree of the names' parts, the last part first: a search takes as long as the layer's name.
    """

    def __init__(self, config: dict[str, Any], component: str):
        self.common = _number(config, f"{component}.lora_alpha")
        patterns = config.get(f"{component}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise ValueError(
                f"metadata: {component}.alpha_pattern: expected names and numbers; "
                f"got {short(patterns)}"
            )
        self.tree: dict[Any, Any] = {}
        for rank, end in enumerate(patterns):
            node = self.tree
            for part in reversed(end.split(".")):
                node = node.setdefault(part, {})
            node[None] = rank, _number(patterns, end)

    def alpha(self, name: str) -> float | None:
        node, found = self.tree, []
        for part in reversed(name.split(".")):
            node = node.get(part)
            if node is None:
                break
            found.append(node.get(None))
        return min(filter(None, found), default=(0, self.common))[1]


def _number(config: dict[str, Any], key: str) -> float | None:
    value = config.get(key)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"metadata: {key}: expected a number; got {short(value)}") from None


def _layers(
    shapes: dict[str, tuple[int, ...]], alphas: dict[str, float], config: dict[str, Any]
) -> tuple[tuple[LoraLayer, ...], tuple[str, ...]]:
    """The pairs of factors, and every key that belongs to none of them."""
    pairs: dict[str, dict[str, str]] = {}
    for key in shapes:
        if match := _LORA_KEY.match(key):
            side = "down" if (match[2] or match[3]) in ("A", "down") else "up"
            pairs.setdefault(match[1], {})[side] = key
    layers, used, patterns = [], set(), {c: AlphaPatterns(config, c) for c in COMPONENTS}
    for stem, pair in pairs.items():
        down, up = (shapes.get(pair.get(side, ""), ()) for side in ("down", "up"))
        if len(down) > 1 and len(up) > 1 and down[0] == up[1] > 0:  # one rank
            component, name = place(stem)
            alpha = alphas[stem] if stem in alphas else patterns[component].alpha(name)
            layers.append(LoraLayer(component, name, pair["down"], pair["up"], down, up, alpha))
            used.update((*pair.values(), f"{stem}.alpha"))
    return tuple(layers), tuple(key for key in shapes if key not in used)


def _kind(layers: tuple[LoraLayer, ...], shapes: dict[str, tuple[int, ...]]) -> str:
    if other := kind_of_keys(shapes):
        return other
    if not layers:
        return "unknown"
    return "LoCon" if any(max(layer.down[2:], default=1) > 1 for layer in layers) else "LoRA"


def _naming(layers: tuple[LoraLayer, ...], shapes: dict[str, tuple[int, ...]]) -> str:
    if any(key.startswith(tuple(KOHYA)) for key in shapes):
        return "kohya"
    keys = [layer.down_key for layer in layers]
    if any(key.endswith("lora_A.weight") for key in keys):
        wrapped = any(key.startswith("base_model.model.") for key in keys)
        return "PEFT" if wrapped else "diffusers/PEFT"
    return "diffusers (before PEFT)" if keys else "unknown"
