"""What a LoRA file holds, read from its header: kind, naming, ranks, alphas, targets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .kinds import kind_of_keys

__all__ = ["LoraFile", "LoraLayer", "adapter_config", "non_finite", "read_lora"]

_LORA_KEY = re.compile(
    r"^(.+?)(?:\.lora_(A|B|down|up)|(?:[._]lora|\.lora_linear_layer)\.(down|up))\.weight$"
)
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")
_HEADER_LENGTH = 8  # bytes, little-endian, of the JSON header that opens a safetensors file


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
    header = _header(path)
    metadata = header.pop("__metadata__", {})
    shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
    layers, other = _layers(shapes, _alphas(path, header), adapter_config(metadata))
    return LoraFile(
        path=path,
        kind=_kind(layers, shapes),
        naming=_naming(layers, shapes),
        layers=layers,
        other_keys=other,
        tensors=len(shapes),
        bytes=path.stat().st_size,
        dtypes=tuple(sorted({entry["dtype"] for entry in header.values()})),
        metadata=metadata,
    )


def adapter_config(metadata: dict[str, str]) -> dict[str, Any]:
    """PEFT's configuration of the adapter, where diffusers has kept it in the metadata."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def non_finite(path: str | Path) -> list[str]:
    """Keys of the tensors that hold a NaN or an infinity. Reads the whole file."""
    with safe_open(path, framework="pt") as file:
        tensors = ((key, file.get_tensor(key)) for key in file.keys())
        return [
            key
            for key, tensor in tensors
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()
        ]


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {what}; expected a LoRA in a .safetensors file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        expected = _HEADER_LENGTH + int.from_bytes(file.read(_HEADER_LENGTH), "little")
        text = file.read(1)
        if text != b"{":
            what = f"not a safetensors file ({size} bytes)"
            raise ValueError(f"{path}: {what}; expected a LoRA in one")
        if expected <= size:
            text += file.read(expected - _HEADER_LENGTH - 1)
            try:
                header = json.loads(text)
                ends = [e["data_offsets"][1] for key, e in header.items() if key[:2] != "__"]
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                raise ValueError(f"{path}: its safetensors header is damaged") from None
            expected += max(ends, default=0)
    if size < expected:
        what = f"{size} bytes, its header announces {expected}"
        raise ValueError(f"{path}: truncated safetensors file: {what}")
    return header


def _alphas(path: Path, header: dict[str, Any]) -> dict[str, float]:
    keys = [key for key in header if key.endswith(".alpha")]
    if not keys:
        return {}
    with safe_open(path, framework="pt") as file:
        return {key.removesuffix(".alpha"): float(file.get_tensor(key).max()) for key in keys}


def _config_alpha(config: dict[str, Any], component: str, name: str) -> float | None:
    """A layer's alpha as PEFT reads it: by the end of the layer's name, else the common one."""
    for end, alpha in (config.get(f"{component}.alpha_pattern") or {}).items():
        if f".{name}".endswith(f".{end}"):
            return float(alpha)
    common = config.get(f"{component}.lora_alpha")
    return None if common is None else float(common)


def _layers(
    shapes: dict[str, tuple[int, ...]], alphas: dict[str, float], config: dict[str, Any]
) -> tuple[tuple[LoraLayer, ...], tuple[str, ...]]:
    """The pairs of factors, and every key that belongs to none of them."""
    pairs: dict[str, dict[str, str]] = {}
    for key in shapes:
        if match := _LORA_KEY.match(key):
            side = "down" if (match[2] or match[3]) in ("A", "down") else "up"
            pairs.setdefault(match[1], {})[side] = key
    layers, used = [], set()
    for stem, pair in pairs.items():
        down, up = (shapes.get(pair.get(side, ""), ()) for side in ("down", "up"))
        if len(down) > 1 and len(up) > 1 and down[0] == up[1] > 0:  # one rank
            place = _place(stem)
            alpha = alphas.get(stem, _config_alpha(config, *place))
            layers.append(LoraLayer(*place, pair["down"], pair["up"], down, up, alpha))
            used.update((*pair.values(), f"{stem}.alpha"))
    return tuple(layers), tuple(key for key in shapes if key not in used)


def _place(stem: str) -> tuple[str, str]:
    """Component and module name that a key's stem means."""
    for prefix, component in _KOHYA.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix)
    name = stem.removeprefix("base_model.model.")
    head, _, rest = name.partition(".")
    return (head, rest) if head in _COMPONENTS else ("unet", name)


def _kind(layers: tuple[LoraLayer, ...], shapes: dict[str, tuple[int, ...]]) -> str:
    if other := kind_of_keys(shapes):
        return other
    if not layers:
        return "unknown"
    return "LoCon" if any(max(layer.down[2:], default=1) > 1 for layer in layers) else "LoRA"


def _naming(layers: tuple[LoraLayer, ...], shapes: dict[str, tuple[int, ...]]) -> str:
    if any(key.startswith(tuple(_KOHYA)) for key in shapes):
        return "kohya"
    keys = [layer.down_key for layer in layers]
    if any(key.endswith("lora_A.weight") for key in keys):
        wrapped = any(key.startswith("base_model.model.") for key in keys)
        return "PEFT" if wrapped else "diffusers/PEFT"
    return "diffusers (before PEFT)" if keys else "unknown"
