"""Random adapters in the formats that diffusers loads."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable

import torch

from . import helpers

# Groups of target modules, as regular expressions over UNet module names.
ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)$"
FEED_FORWARD = r"ff\.net\.(0\.proj|2)$"
PROJECTIONS = r"attentions\.\d+\.proj_(in|out)$"
RESNETS = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$"
SAMPLERS = r"(down|up)samplers\.0\.conv$"
BORDERS = r"^conv_(in|out)$|^time_embedding\.linear_1$"
EVERYTHING = "|".join([ATTENTION, FEED_FORWARD, PROJECTIONS, RESNETS, SAMPLERS, BORDERS])
TEXT = r"self_attn\.(q_proj|k_proj|v_proj|out_proj)$|mlp\.fc[12]$"

STRENGTH = 0.6  # of B A relative to W: a visible difference, and no overflow with sixteen of them

Rank = Callable[[int], int]


def mixed_ranks(index: int) -> int:
    return (4, 1, 3, 8, 2)[index % 5]


def targets(model: torch.nn.Module, pattern: str) -> list[tuple[str, torch.nn.Module]]:
    """Base layers the pattern names, found also where PEFT wraps them already."""
    found = []
    for name, module in model.named_modules():
        name, _, inner = name.partition(".base_layer")
        if not inner and hasattr(module, "base_layer"):
            continue  # the wrapper: its base layer comes next
        if re.search(pattern, name) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            found.append((name, module))
    return found


def factors(module: torch.nn.Module, rank: int, draw: torch.Generator):
    """A and B whose product has STRENGTH times the size of the weight."""
    weight = module.weight
    if weight.ndim == 2:
        down, up = (rank, weight.shape[1]), (weight.shape[0], rank)
    else:
        down, up = (rank, *weight.shape[1:]), (weight.shape[0], rank, 1, 1)
    a = torch.randn(down, generator=draw) / a_norm(down)
    b = torch.randn(up, generator=draw) * (weight.float().std() * STRENGTH * a_norm(down))
    return a, b / rank**0.5


def a_norm(shape: tuple[int, ...]) -> float:
    size = 1
    for extent in shape[1:]:
        size *= extent
    return size**0.5


def state_dict(pipe, pattern=ATTENTION, *, seed=0, rank: Rank = mixed_ranks, text=False) -> dict:
    """Weights named as diffusers and PEFT save them; no alpha, so every scale is 1."""
    draw = torch.Generator().manual_seed(seed)
    found = [("unet", *target) for target in targets(pipe.unet, pattern)]
    for part in ("text_encoder", "text_encoder_2") if text else ():
        if getattr(pipe, part, None) is not None:
            found += [(part, *target) for target in targets(getattr(pipe, part), TEXT)]
    weights = {}
    for index, (part, name, module) in enumerate(found):
        a, b = factors(module, rank(index), draw)
        weights[f"{part}.{name}.lora_A.weight"] = a
        weights[f"{part}.{name}.lora_B.weight"] = b
    assert weights, f"no module of the UNet matches {pattern}"
    return weights


def kohya(weights: dict, alpha: Callable[[int], float]) -> dict:
    """The same weights in kohya's format, with an alpha per module (scale = alpha / rank)."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    if any(key.startswith("text_encoder_2.") for key in weights):
        prefixes.update(text_encoder="lora_te1", text_encoder_2="lora_te2")
    out = {}
    downs = [key for key in weights if key.endswith("lora_A.weight")]
    for index, key in enumerate(downs):
        part, _, name = key.removesuffix(".lora_A.weight").partition(".")
        stem = f"{prefixes[part]}_{name.replace('.', '_')}"
        out[f"{stem}.lora_down.weight"] = weights[key]
        out[f"{stem}.lora_up.weight"] = weights[key.replace("lora_A", "lora_B")]
        out[f"{stem}.alpha"] = torch.tensor(float(alpha(index)))
    return out


def mixed_alphas(index: int) -> float:
    return (4.0, 1.0, 2.0, 6.0)[index % 4]


def add(pipe, name: str, pattern=ATTENTION, *, seed=None, rank=mixed_ranks, text=False, alpha=None):
    """Load one random adapter through ``pipe.load_lora_weights``."""
    seed = sum(map(ord, name)) if seed is None else seed
    weights = state_dict(pipe, pattern, seed=seed, rank=rank, text=text)
    pipe.load_lora_weights(kohya(weights, alpha) if alpha else weights, adapter_name=name)


def add_many(pipe, names: list[str], pattern=ATTENTION, weights=None, **options):
    """Load and activate several; ``weights`` are theirs (1 each by default)."""
    for name in names:
        add(pipe, name, pattern, **options)
    pipe.set_adapters(names, weights or [1.0] * len(names))
    return pipe


@functools.cache
def _loaded(kind, shape, names, pattern, weights, text):
    pipe = helpers.pipeline(kind, shape)
    weights = None if weights is None else list(weights)
    return add_many(pipe, list(names), pattern, weights, text=text)


def fresh(names, pattern=ATTENTION, *, kind="sd", shape="dummy", weights=None, text=False):
    """A copy of a pipeline with these adapters active: loading them takes far longer."""
    weights = None if weights is None else tuple(weights)
    return copy.deepcopy(_loaded(kind, shape, tuple(names), pattern, weights, text))


def add_mixture(pipe):
    """Three adapters with nothing in common: targets, ranks, alphas, formats, text encoder."""
    add(pipe, "character_1", EVERYTHING)
    add(pipe, "style_1", f"{ATTENTION}|{FEED_FORWARD}", text=True, alpha=mixed_alphas)
    add(pipe, "background_1", f"{RESNETS}|{PROJECTIONS}", rank=lambda index: 1)
    pipe.set_adapters(["character_1", "style_1", "background_1"], [0.8, 1.0, -0.5])
    return pipe
