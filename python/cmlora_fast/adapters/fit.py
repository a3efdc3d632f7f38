"""Is a file a LoRA that is computed rightly, and does it fit a model, by name and by shape?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .file import LoraFile, LoraLayer, adapter_config, non_finite, read_lora
from .kinds import PLAIN

__all__ = [
    "Misfit",
    "apply_alphas",
    "check_fit",
    "check_lora",
    "flat_names",
    "layers_per_block",
    "meta_models",
    "misfits",
    "plain",
    "some",
]

_SGM = re.compile(r"^(input_blocks|output_blocks|middle_block)_(\d{1,4})_(?:(\d{1,4})_)?(.+)$")
# Names inside a resnet of the original Stable Diffusion code, and diffusers' for them.
_SGM_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SGM_OUTER = {
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}

SHOWN = 3  # keys that an error names; it counts the rest
ROUNDING = 1e-3  # relative: alphas are often kept in half precision


@dataclass(frozen=True)
class Misfit:
    """A key that the model has no place for; ``expected`` None: no such layer at all."""

    key: str
    component: str
    shape: tuple[int, ...]
    expected: tuple[int, ...] | None
    has_component: bool = True

    def __str__(self) -> str:
        key = plain(self.key)
        if self.expected is None:
            missing = f"'s {self.component} has no such layer"
            if not self.has_component:
                missing = f" has no {self.component}"
            return f"{key} {list(self.shape)}: this model{missing}"
        return f"{key} {list(self.shape)}: expected {list(self.expected)}"

    to_dict = asdict


def check_lora(
    path: str | Path,
    unet: nn.Module | None = None,
    text_encoders: Mapping[str, nn.Module] | None = None,
) -> LoraFile:
    """Refuse a file that would not be computed rightly.

    Args:
        path: A safetensors file.
        unet: The UNet it is meant for; None: its architecture is not checked.
        text_encoders: "text_encoder", "text_encoder_2" -> module, as far as the pipeline has them.

    Raises:
        ValueError: One line that names the file, what it is and what it should be.
    """
    file = read_lora(path)
    if file.kind == "unknown":
        raise ValueError(
            f"{path}: not a LoRA: none of its {file.tensors} tensors is one "
            f"({some(file.other_keys) or 'it is empty'}); "
            "expected keys such as lora_A.weight or lora_down.weight"
        )
    if file.kind not in PLAIN:
        raise ValueError(f"{path}: is {file.kind}; expected plain LoRA (Linear and Conv2d layers)")
    if file.other_keys:
        raise ValueError(
            f"{path}: {len(file.other_keys)} of its {file.tensors} keys are not plain LoRA "
            f"({some(file.other_keys)})"
        )
    if bad := non_finite(path):
        raise ValueError(
            f"{path}: NaN or infinity in {len(bad)} of its {file.tensors} tensors "
            f"({some(bad)}); expected finite numbers"
        )
    if unet is not None:
        check_fit(file, {"unet": unet, **(text_encoders or {})})
    return file


def check_fit(file: LoraFile, models: Mapping[str, nn.Module]) -> None:
    """Raise ValueError for a file whose layers are not the models' (component -> module)."""
    wrong = misfits(file, models)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{file.path}: made for another architecture: {len(wrong)} of its "
            f"{len(file.layers)} layers do not fit: {'; '.join(map(str, wrong[:SHOWN]))}{more}"
        )


def misfits(file: LoraFile, models: Mapping[str, nn.Module]) -> list[Misfit]:
    """Every layer of the file that does not fit.

    Args:
        file: The LoRA.
        models: Component -> module, e.g. {"unet": ..., "text_encoder": ...}; modules on the meta
            device will do. Layers of a component that is not among them do not fit.
    """
    found = []
    for layer, shape in _matched(file, models, _weight_shape):
        found.extend(_compare(layer, shape, layer.component in models))
    # Two shapes side by side tell more than a missing layer, the UNet more than a text encoder.
    return sorted(found, key=lambda m: (m.expected is None, m.component != "unet"))


def apply_alphas(file: LoraFile, models: Mapping[str, nn.Module], adapter: str) -> int:
    """Scale each layer of the loaded file by its own alpha / rank; how many were scaled otherwise.

    diffusers reads one alpha for most layers, and rounds what it takes for exceptions. A layer
    without an alpha among others that have one is scaled by 1, as trainers mean it.
    """
    if any(key.endswith("use_rslora") and on for key, on in adapter_config(file.metadata).items()):
        return 0  # rank-stabilised: alpha / sqrt(rank) is meant
    if all(layer.alpha is None for layer in file.layers):
        return 0
    changed = 0
    loaded = _matched(file, models, lambda m: m if adapter in getattr(m, "scaling", ()) else None)
    for layer, module in loaded:
        alpha = layer.rank if layer.alpha is None else layer.alpha
        scale = alpha / layer.rank
        if module is None or abs(module.scaling[adapter] - scale) <= ROUNDING * abs(scale):
            continue
        module.lora_alpha[adapter], module.scaling[adapter] = alpha, scale
        changed += 1
    return changed


def meta_models(folder: str | Path) -> dict[str, nn.Module]:
    """Component -> module without weights, from the configurations in a diffusers directory."""
    import transformers
    from diffusers import UNet2DConditionModel

    folder = Path(folder).expanduser()
    if not (folder / "unet" / "config.json").is_file():
        raise ValueError(f"{folder}: expected a diffusers directory with unet/config.json")
    with torch.device("meta"):
        models = {"unet": UNet2DConditionModel.from_config(_config(folder / "unet"))}
        for name in ("text_encoder", "text_encoder_2"):
            config = _config(folder / name)
            cls = (config.get("architectures") or [""])[0]
            if cls in ("CLIPTextModel", "CLIPTextModelWithProjection"):
                models[name] = getattr(transformers, cls)(transformers.CLIPTextConfig(**config))
    return models


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def plain(key: str) -> str:
    """A key as it is, unless it would command the terminal that shows it."""
    return key if key.isprintable() else ascii(key)


def some(keys: Sequence[str]) -> str:
    """The first few keys, as they may be shown."""
    return ", ".join(map(plain, keys[:SHOWN])) + (", …" if len(keys) > SHOWN else "")


def _matched(
    file: LoraFile, models: Mapping[str, nn.Module], fact: Callable[[nn.Module], Any]
) -> list[tuple[LoraLayer, Any]]:
    """Every layer of the file with a fact about the model's layer of that name, else None.

    PEFT's wrappers are seen through; modules whose fact is None count as not there.
    """
    tables = {
        part: {
            name.replace(".base_layer", "").replace(".", "_"): value
            for name, module in model.named_modules()
            if ".lora_" not in name and (value := fact(module)) is not None
        }
        for part, model in models.items()
    }
    depth = layers_per_block(models)
    found = []
    for layer in file.layers:
        table = tables.get(layer.component, {})
        names = flat_names(layer.component, layer.name, depth)
        found.append((layer, next((table[n] for n in names if n in table), None)))
    return found


def layers_per_block(models: Mapping[str, nn.Module]) -> int:
    """Of the UNet, which the names of the original code count by."""
    depth = getattr(getattr(models.get("unet"), "config", None), "layers_per_block", 2)
    return depth if isinstance(depth, int) else depth[0]


def _weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Of the layers that LoRA goes to."""
    return tuple(module.weight.shape) if type(module) in (nn.Linear, nn.Conv2d) else None


def flat_names(component: str, name: str, depth: int) -> list[str]:
    """Flattened names under which the model may know a file's layer."""
    name = name.replace(".", "_").replace("_processor_to_", "_to_")
    if component != "unet":
        name = re.sub(r"_to_(q|k|v|out)$", r"_\1_proj", name)
        bare = name.removeprefix("text_model_")
        return [name, bare, f"text_model_{bare}"]
    if re.search(r"attn\d_to_out$", name):
        name += "_0"
    return [name, _SGM_OUTER.get(name) or _from_sgm(name, depth)]


def _from_sgm(name: str, depth: int) -> str:
    """diffusers' name for a layer named as in the original Stable Diffusion code."""
    match = _SGM.match(name)
    if match is None:
        return name
    part, number, inner = match[1], int(match[2]), match[3]
    rest = _SGM_RESNET.get(match[4], match[4])
    if part == "middle_block":
        place = ("resnets_0", "attentions_0", "resnets_1")[min(number, 2)]
        return f"mid_block_{place}_{f'{inner}_' if inner else ''}{rest}"
    down = part == "input_blocks"
    block, index = divmod(number - down, depth + 1)
    side = "down" if down else "up"
    if rest == ("op" if down else "conv"):
        return f"{side}_blocks_{block}_{side}samplers_0_conv"
    place = "attentions" if int(inner or 0) else "resnets"
    return f"{side}_blocks_{block}_{place}_{index}_{rest}"


def _compare(layer: LoraLayer, shape: tuple[int, ...] | None, has_component: bool) -> list[Misfit]:
    """The first of the layer's two factors whose shape does not fit, if any."""
    if shape is None:
        return [Misfit(layer.down_key, layer.component, layer.down, None, has_component)]
    down, up = (layer.rank, *shape[1:]), (shape[0], layer.rank, *(1 for _ in shape[2:]))
    both = (layer.down_key, layer.down, down), (layer.up_key, layer.up, up)
    wrong = [Misfit(key, layer.component, own, want) for key, own, want in both if own != want]
    return wrong[:1]
