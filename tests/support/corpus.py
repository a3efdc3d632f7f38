"""Tiny LoRA files in every layout, by the layouts' own rules, each with the update it means.

A file is made for some layers of a pipeline; the update of each is computed in float64 from the
numbers in the file by its kind's formula, with none of the loader's code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import adapters

LINEAR = r"^(down_blocks\.1.*attn2\.to_[qk]|mid_block.*attn1\.to_out\.0|up_blocks\.0.*ff\.net\.2)$"
CONV = r"^(down_blocks\.1\.resnets\.0\.conv[12]|mid_block\.resnets\.1\.conv1)$"
BOTH = f"{LINEAR}|{CONV}"
TEXT = r"layers\.1\.(self_attn\.q_proj|self_attn\.out_proj|mlp\.fc1)$"
SIZE = 0.3  # of an update, relative to its weight

Layer = tuple[str, str, torch.nn.Module]  # component, name, module


@dataclass
class Corpus:
    """Tensors of a file, and component.name -> ΔW in float64."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    updates: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, layer: Layer, stem: str, parts: dict[str, torch.Tensor], update) -> None:
        part, name, module = layer
        self.tensors |= {f"{stem}{role}": t.contiguous() for role, t in parts.items()}
        self.updates[f"{part}.{name}"] = update.reshape(module.weight.shape)

    @torch.no_grad()
    def merge_into(self, pipe, weight: float = 1.0):
        """The plain pipeline with the updates in its weights."""
        for place, update in self.updates.items():
            part, _, name = place.partition(".")
            base = getattr(pipe, part).get_submodule(name).weight
            base.copy_(base.double() + weight * update)
        return pipe


def layers_of(pipe, pattern: str = LINEAR, text: bool = False) -> list[Layer]:
    found = [("unet", *target) for target in adapters.targets(pipe.unet, pattern)]
    for part in ("text_encoder", "text_encoder_2") if text else ():
        if getattr(pipe, part, None) is not None:
            found += [(part, *target) for target in adapters.targets(getattr(pipe, part), TEXT)]
    assert found
    return found


def plain(pipe, naming: Callable[[str, str], tuple[str, str, str]], *, alpha=None, **which):
    """Low-rank pairs. ``naming``: component, name -> stem, end of the down key and of the up key.

    ``alpha``: index -> number, kept as ``.alpha`` under the stem.
    """
    draw, made = torch.Generator().manual_seed(1), Corpus()
    for index, layer in enumerate(layers_of(pipe, **which)):
        rank = adapters.mixed_ranks(index)
        a, b = adapters.factors(layer[2], rank, draw)
        stem, down, up = naming(layer[0], layer[1])
        parts, scale = {down: a, up: b}, 1.0
        if alpha is not None:
            parts[".alpha"] = torch.tensor(float(alpha(index)))
            scale = alpha(index) / rank
        made.add(layer, stem, parts, scale * (b.double().flatten(1) @ a.double().flatten(1)))
    return made


def kohya_stem(part: str, name: str, xl: bool = False) -> str:
    first = "lora_te1" if xl else "lora_te"
    prefix = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}[part]
    within = name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
    return f"{prefix}_{within.replace('.', '_')}"


def _noise(draw, weight: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=draw) * weight.std().item() ** 0.5


def _matrix(weight: torch.Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def dora(pipe) -> Corpus:
    """W' = m (W + s B A) / ‖W + s B A‖, the norm of each output's row, at weight 1."""
    draw, made = torch.Generator().manual_seed(2), Corpus()
    for layer in layers_of(pipe, LINEAR):
        weight = layer[2].weight.detach().double()
        a, b = adapters.factors(layer[2], 4, draw)
        moved = weight + 0.5 * (b.double() @ a.double())
        norm = moved.norm(dim=1, keepdim=True)
        scale = norm.float() * (1 + 0.2 * torch.rand(norm.shape, generator=draw))
        parts = {".lora_down.weight": a, ".lora_up.weight": b, ".dora_scale": scale}
        parts[".alpha"] = torch.tensor(2.0)
        update = scale.double() * moved / norm - weight
        made.add(layer, kohya_stem(*layer[:2]), parts, update)
    return made


def loha(pipe, rank: int = 2) -> Corpus:
    draw, made = torch.Generator().manual_seed(3), Corpus()
    for layer in layers_of(pipe, BOTH):
        weight = layer[2].weight.detach()
        out, inner = _matrix(weight)
        parts = {}
        for i in (1, 2):
            parts[f".hada_w{i}_a"] = _noise(draw, weight, out, rank) * SIZE
            parts[f".hada_w{i}_b"] = _noise(draw, weight, rank, inner)
        first, second = (
            parts[f".hada_w{i}_a"].double() @ parts[f".hada_w{i}_b"].double() for i in (1, 2)
        )
        update = first * second * (1.5 / rank)
        made.add(layer, kohya_stem(*layer[:2]), parts | {".alpha": torch.tensor(1.5)}, update)
    return made


def loha_tucker(pipe) -> Corpus:
    draw, made, rank = torch.Generator().manual_seed(4), Corpus(), 2
    for layer in layers_of(pipe, CONV):
        weight = layer[2].weight.detach()
        out, inner, *kernel = weight.shape
        parts, halves = {".alpha": torch.tensor(1.0)}, []
        for i in (1, 2):
            core = _noise(draw, weight, rank, rank, *kernel)
            left, right = _noise(draw, weight, rank, out), _noise(draw, weight, rank, inner)
            parts |= {f".hada_t{i}": core, f".hada_w{i}_a": left, f".hada_w{i}_b": right}
            half = torch.zeros(weight.shape, dtype=torch.float64)
            for p in range(rank):
                for q in range(rank):
                    outer = left[p].double()[:, None] * right[q].double()[None]
                    half += outer[..., None, None] * core[p, q].double()
            halves.append(half)
        update = halves[0] * halves[1] * (1.0 / rank)
        made.add(layer, kohya_stem(*layer[:2]), parts, update)
    return made


def locon_tucker(pipe) -> Corpus:
    draw, made, rank = torch.Generator().manual_seed(5), Corpus(), 3
    for layer in layers_of(pipe, CONV):
        weight = layer[2].weight.detach()
        out, inner, *kernel = weight.shape
        mid = _noise(draw, weight, rank, rank, *kernel)
        down, up = (_noise(draw, weight, *shape, 1, 1) for shape in ((rank, inner), (out, rank)))
        update = torch.zeros(weight.shape, dtype=torch.float64)
        for p in range(rank):
            for q in range(rank):
                outer = up[:, p, 0, 0].double()[:, None] * down[q, :, 0, 0].double()[None]
                update += outer[..., None, None] * mid[p, q].double()
        parts = {".lora_down.weight": down, ".lora_up.weight": up, ".lora_mid.weight": mid}
        parts[".alpha"] = torch.tensor(2.0)
        made.add(layer, kohya_stem(*layer[:2]), parts, update * (2.0 / rank))
    return made


def lokr(pipe, form: str) -> Corpus:
    """``form``: "whole", "low rank" (of the second factor), "both low rank"."""
    draw, made, rank = torch.Generator().manual_seed(6), Corpus(), 1
    for layer in layers_of(pipe, BOTH):
        weight = layer[2].weight.detach()
        out, inner, *kernel = weight.shape
        parts, scale = {".alpha": torch.tensor(0.7)}, 0.7 / rank
        small = _noise(draw, weight, 2, 2)
        if form == "both low rank":
            left, right = _noise(draw, weight, 2, rank), _noise(draw, weight, rank, 2)
            parts |= {".lokr_w1_a": left, ".lokr_w1_b": right}
            small = left @ right
        else:
            parts[".lokr_w1"] = small
        if form == "whole":
            large, scale = _noise(draw, weight, out // 2, inner // 2, *kernel), 1.0
            parts[".lokr_w2"] = large
        else:
            left = _noise(draw, weight, out // 2, rank)
            right = _noise(draw, weight, rank, weight[0].numel() // 2)
            parts |= {".lokr_w2_a": left, ".lokr_w2_b": right}
            large = (left.double() @ right.double()).reshape(out // 2, inner // 2, *kernel)
        small, large = small.double(), large.double()
        rows = [torch.cat([small[i, j] * large for j in range(2)], 1) for i in range(2)]
        made.add(layer, kohya_stem(*layer[:2]), parts, torch.cat(rows, 0) * scale)
    return made


def full(pipe) -> Corpus:
    draw, made = torch.Generator().manual_seed(7), Corpus()
    for layer in layers_of(pipe, BOTH):
        weight = layer[2].weight.detach()
        diff = torch.randn(weight.shape, generator=draw) * weight.std() * SIZE
        made.add(layer, kohya_stem(*layer[:2]), {".diff": diff}, diff.double())
    return made
