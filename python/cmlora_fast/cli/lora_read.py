"""What a LoRA file holds, read from its header: kind, naming, ranks, alphas, targets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CliError

__all__ = ["LoraFile", "LoraLayer", "adapter_config", "non_finite", "read_lora"]

_LORA_KEY = re.compile(
    r"^(?P<stem>.+?)(?:\.lora_(?P<peft>[AB])|\.lora_(?P<kohya>down|up)"
    r"|[._]lora\.(?P<old>down|up)|\.lora_linear_layer\.(?P<linear>down|up))\.weight$"
)
_DOWN = ("A", "down")
# Keys of what is not plain LoRA, most specific first; the first that occurs names the file.
FOREIGN = (
    ("LoHa", re.compile(r"\.hada_[wt]\d")),
    ("LoKr", re.compile(r"\.lokr_[wt]\d")),
    ("DoRA", re.compile(r"\.dora_scale$|lora_magnitude_vector")),
    ("OFT", re.compile(r"\.oft_(blocks|diag|r|R)\b")),
    ("IA3", re.compile(r"\.ia3_l|\.on_input$")),
    ("LoCon with CP decomposition", re.compile(r"\.lora_mid\.")),
    ("LoRA with bias", re.compile(r"\.lora_(B|up|down)\.bias$|\.bias_(indices|values|size)$")),
    ("full weight difference", re.compile(r"\.diff(_b)?$")),
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
        CliError: The file is missing, no safetensors file, or not whole.
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
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = ((key, file.get_tensor(key)) for key in file.keys())
        return [
            key
            for key, tensor in tensors
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()
        ]


def _header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CliError(f"{path}: no such file; expected a LoRA in a .safetensors file")
    if path.is_dir():
        raise CliError(f"{path}: is a directory; expected a LoRA in a .safetensors file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH), "little")
        start = file.read(1)
        whole = _HEADER_LENGTH + length
        if size < _HEADER_LENGTH + 2 or start != b"{":
            raise CliError(f"{path}: not a safetensors file ({size} bytes); expected a LoRA in one")
        if whole > size:
            raise CliError(_truncated(path, size, whole))
        text = start + file.read(length - 1)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise CliError(f"{path}: its safetensors header is damaged") from None
    if size < whole + max(ends, default=0):
        raise CliError(_truncated(path, size, whole + max(ends)))
    return header


def _truncated(path: Path, size: int, expected: int) -> str:
    return f"{path}: truncated safetensors file: {size} bytes, its header announces {expected}"


def _alphas(path: Path, header: dict[str, Any]) -> dict[str, float]:
    keys = [key for key in header if key.endswith(".alpha")]
    if not keys:
        return {}
    from safetensors import safe_open

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
            stem, *parts = match.group("stem", "peft", "kohya", "old", "linear")
            side = next(part for part in parts if part)
            pairs.setdefault(stem, {})["down" if side in _DOWN else "up"] = key
    layers, used = [], set()
    for stem, pair in pairs.items():
        if len(pair) == 2 and _have_one_rank(shapes[pair["down"]], shapes[pair["up"]]):
            component, name = _place(stem)
            factors = shapes[pair["down"]], shapes[pair["up"]]
            alpha = alphas.get(stem, _config_alpha(config, component, name))
            layer = LoraLayer(component, name, pair["down"], pair["up"], *factors, alpha=alpha)
            layers.append(layer)
            used.update((*pair.values(), f"{stem}.alpha"))
    return tuple(layers), tuple(key for key in shapes if key not in used)


def _have_one_rank(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Shapes (rank, inputs, …) and (outputs, rank, …)."""
    return len(down) > 1 and len(up) > 1 and down[0] == up[1] > 0


def _place(stem: str) -> tuple[str, str]:
    """Component and module name that a key's stem means."""
    for prefix, component in _KOHYA.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix)
    head, _, rest = stem.removeprefix("base_model.model.").partition(".")
    if head in _COMPONENTS:
        return head, rest
    return "unet", stem.removeprefix("base_model.model.")


def _kind(layers: tuple[LoraLayer, ...], shapes: dict[str, tuple[int, ...]]) -> str:
    for name, pattern in FOREIGN:
        if any(pattern.search(key) for key in shapes):
            return name
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
