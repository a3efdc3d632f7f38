"""Does a LoRA fit a model? Its layers against the model's, by name and by shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .lora_read import LoraFile, LoraLayer, adapter_config

__all__ = ["Misfit", "ignored_alphas", "misfits"]

_SGM = re.compile(r"^(input_blocks|output_blocks|middle_block)_(\d+)_(?:(\d+)_)?(.+)$")
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
        if self.expected is None:
            missing = f"'s {self.component} has no such layer"
            if not self.has_component:
                missing = f" has no {self.component}"
            return f"{self.key} {list(self.shape)}: this model{missing}"
        return f"{self.key} {list(self.shape)}: expected {list(self.expected)}"

    to_dict = asdict


def misfits(file: LoraFile, models: Mapping[str, Any]) -> list[Misfit]:
    """Every layer of the file that does not fit.

    Args:
        file: The LoRA.
        models: Component -> module, e.g. {"unet": ..., "text_encoder": ...}; modules on the meta
            device will do. Layers of a component that is not among them do not fit.
    """
    tables = {part: _layers_of(model) for part, model in models.items()}
    layers_per_block = _layers_per_block(models.get("unet"))
    found = []
    for layer in file.layers:
        table = tables.get(layer.component, {})
        shape = next((table[n] for n in _names(layer, layers_per_block) if n in table), None)
        found.extend(_compare(layer, shape, layer.component in models))
    # Two shapes side by side tell more than a missing layer, the UNet more than a text encoder.
    return sorted(found, key=lambda m: (m.expected is None, m.component != "unet"))


def ignored_alphas(file: LoraFile, models: Mapping[str, Any], adapter: str) -> int:
    """How many layers of the loaded file are scaled by something else than its alpha / rank."""
    if any(key.endswith("use_rslora") and on for key, on in adapter_config(file.metadata).items()):
        return 0  # rank-stabilised: alpha / sqrt(rank) is meant
    tables = {
        part: {
            name.replace(".", "_"): module.scaling[adapter]
            for name, module in model.named_modules()
            if adapter in getattr(module, "scaling", ())
        }
        for part, model in models.items()
    }
    layers_per_block = _layers_per_block(models.get("unet"))
    count = 0
    for layer in file.layers:
        table = tables.get(layer.component, {})
        scale = next((table[n] for n in _names(layer, layers_per_block) if n in table), None)
        if layer.alpha is not None and scale is not None:
            count += abs(scale - layer.alpha / layer.rank) > ROUNDING * abs(scale)
    return count


def _layers_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Flattened name -> weight shape of the layers that LoRA goes to, also where PEFT wraps them"""
    from torch import nn

    return {
        name.replace(".base_layer", "").replace(".", "_"): tuple(module.weight.shape)
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d) and ".lora_" not in name
    }


def _layers_per_block(unet: Any) -> int:
    layers = getattr(getattr(unet, "config", None), "layers_per_block", 2)
    return layers if isinstance(layers, int) else layers[0]


def _names(layer: LoraLayer, layers_per_block: int) -> list[str]:
    """Flattened names under which the model may know this layer."""
    name = layer.name.replace(".", "_").replace("_processor_to_", "_to_")
    if layer.component != "unet":
        bare = name.removeprefix("text_model_")
        return [name, bare, f"text_model_{bare}"]
    if re.search(r"attn\d_to_out$", name):
        name += "_0"
    return [name, _SGM_OUTER.get(name) or _from_sgm(name, layers_per_block)]


def _from_sgm(name: str, layers_per_block: int) -> str:
    """diffusers' name for a layer named as in the original Stable Diffusion code."""
    match = _SGM.match(name)
    if match is None:
        return name
    part, number, inner, rest = match[1], int(match[2]), int(match[3] or 0), match[4]
    rest = _SGM_RESNET.get(rest, rest)
    if part == "middle_block":
        return f"mid_block_{('resnets_0', 'attentions_0', 'resnets_1')[min(number, 2)]}_" + (
            match[3] + "_" + rest if match[3] else rest
        )
    period = layers_per_block + 1
    if part == "input_blocks":
        block, index = divmod(number - 1, period)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        return f"down_blocks_{block}_{('resnets', 'attentions')[min(inner, 1)]}_{index}_{rest}"
    block, index = divmod(number, period)
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    return f"up_blocks_{block}_{('resnets', 'attentions')[min(inner, 1)]}_{index}_{rest}"


def _compare(layer: LoraLayer, shape: tuple[int, ...] | None, has_component: bool) -> list[Misfit]:
    """The first of the layer's two factors whose shape does not fit, if any."""
    if shape is None:
        return [Misfit(layer.down_key, layer.component, layer.down, None, has_component)]
    rank = layer.rank
    down, up = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
    if layer.down != down:
        return [Misfit(layer.down_key, layer.component, layer.down, down)]
    if layer.up != up:
        return [Misfit(layer.up_key, layer.component, layer.up, up)]
    return []
