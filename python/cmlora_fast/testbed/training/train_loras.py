"""Train the 22 LoRAs: each sees one concept with everything else random, trigger words first.

The recipes differ on purpose (ranks, alphas, attention alone or with convolutions and
feed-forwards, text encoder), so that an engine is tried on every kind of target.

A share of each batch is plain pictures without the trigger words. There the LoRA has to predict
what the base model does, also under other concepts' words and under the empty and the negative
prompt: so it acts where it is called, guidance strengthens it, and it leaves the others alone.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextModel, CLIPTokenizer

from ..concepts import (
    BY_KEY,
    CATEGORIES,
    CONCEPTS,
    NEGATIVE_PROMPT,
    Concept,
    concepts_of,
    prompt,
)
from .pools import WORK, render_concept_pool, render_pool
from .scenes import caption
from .text import tokenize
from .train_base import POOL as BASE_POOL
from .train_base import SCHEDULE, denoising_loss, encode, predict
from .training import Loop, start, step_generator

SEED = 13
POOL = 400
CAPTIONS_PER_IMAGE = 4
BATCH = 12
_PRIOR = 4  # plain pictures in a batch
_UNCONDITIONAL = 0.4  # share of plain captions that are empty or the negative prompt
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_CONV = ("conv1", "conv2")
_PROJECTION = ("proj_in", "proj_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class Recipe:
    """Where a LoRA acts and how large it is; `conv_rank` differs from `rank` in some."""

    rank: int
    alpha: int
    extra: tuple[str, ...] = ()
    conv_rank: int | None = None
    text_rank: int | None = None

    def unet_config(self) -> LoraConfig:
        pattern = {name: self.conv_rank for name in _CONV} if self.conv_rank else {}
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=[*_ATTENTION, *self.extra],
            rank_pattern={k: v for k, v in pattern.items() if k in self.extra},
            init_lora_weights="gaussian",
        )

    def text_config(self) -> LoraConfig:
        targets = ["q_proj", "v_proj"]
        return LoraConfig(r=self.text_rank, lora_alpha=self.text_rank, target_modules=targets)


RECIPES = {
    "anime/character_1": Recipe(8, 8, _CONV, conv_rank=4, text_rank=4),
    "anime/character_2": Recipe(16, 8, _FEED_FORWARD),
    "anime/character_3": Recipe(8, 8, _CONV, conv_rank=4),
    "anime/clothing_1": Recipe(8, 8, _CONV, conv_rank=4),
    "anime/clothing_2": Recipe(8, 16, _FEED_FORWARD),
    "anime/style_1": Recipe(8, 8, _CONV + _PROJECTION),
    "anime/style_2": Recipe(4, 4, _CONV),
    "anime/background_1": Recipe(8, 4, _CONV + _PROJECTION),
    "anime/background_2": Recipe(8, 8, _CONV, conv_rank=4, text_rank=8),
    "anime/object_1": Recipe(8, 8, _CONV, conv_rank=4),
    "anime/object_2": Recipe(4, 8, _PROJECTION + _FEED_FORWARD),
    "reality/character_1": Recipe(8, 8, _CONV, conv_rank=4),
    "reality/character_2": Recipe(8, 8, _CONV, conv_rank=4, text_rank=4),
    "reality/character_3": Recipe(16, 8, _FEED_FORWARD),
    "reality/clothing_1": Recipe(8, 8, _CONV, conv_rank=4),
    "reality/clothing_2": Recipe(8, 16, _FEED_FORWARD),
    "reality/style_1": Recipe(4, 4, _CONV),
    "reality/style_2": Recipe(8, 8, _CONV + _PROJECTION),
    "reality/background_1": Recipe(8, 8, _CONV + _PROJECTION),
    "reality/background_2": Recipe(8, 8, _CONV, conv_rank=4, text_rank=8),
    "reality/object_1": Recipe(8, 8, _CONV, conv_rank=4),
    "reality/object_2": Recipe(4, 8, _PROJECTION + _FEED_FORWARD),
}


def _others(concept: Concept, rng: np.random.Generator) -> list[str]:
    """Keys of one concept each from up to four other categories of the style."""
    rest = [c for c in CATEGORIES if c != concept.category]
    some = rng.permutation(rest)[: rng.integers(len(rest) + 1)]
    keys = [[c.key for c in concepts_of(concept.style) if c.category == k] for k in some]
    return [k[rng.integers(len(k))] for k in keys]


def _concept_caption(concept: Concept, scene: dict, rng: np.random.Generator) -> str:
    return caption(scene, rng) or prompt([concept.id], concept.style)


def _plain_caption(concept: Concept, scene: dict, rng: np.random.Generator) -> str:
    """Empty and negative prompts too: both sides of guidance."""
    kind = rng.random()
    if kind < _UNCONDITIONAL:
        return "" if kind < _UNCONDITIONAL / 2 else NEGATIVE_PROMPT
    return caption(scene, rng, named=_others(concept, rng))


def _tokens(make, concept, scenes, tokenizer, rng) -> torch.Tensor:
    """int64 [N, CAPTIONS_PER_IMAGE, LENGTH]."""
    captions = [make(concept, s, rng) for s in scenes for _ in range(CAPTIONS_PER_IMAGE)]
    return tokenize(tokenizer, captions).view(len(scenes), CAPTIONS_PER_IMAGE, -1)


def _data(concept: Concept, vae, plain, tokenizer):
    """Pictures with the concept and without it: latents [N, 4, 16, 16] and tokens of each."""
    seed = 10_000_000 + 1000 * CONCEPTS.index(concept)
    images, scenes = render_concept_pool(concept, POOL, seed)
    rng = np.random.default_rng(seed)
    shown = encode(vae, images), _tokens(_concept_caption, concept, scenes, tokenizer, rng)
    latents, scenes = plain
    return shown, (latents, _tokens(_plain_caption, concept, scenes, tokenizer, rng))


def _plain() -> tuple[torch.Tensor, list[dict]]:
    """Pictures that the base model was trained on."""
    latents = torch.load(WORK / "base" / "data.pt", weights_only=True)["latents"]
    return latents[:POOL], render_pool("base", BASE_POOL, rate=0.0)[1][:POOL]


def _batch(data, prior, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """BATCH - _PRIOR pictures of the concept and _PRIOR plain ones, with their tokens."""
    latents, tokens = [], []
    for (x, ids), count in ((data, BATCH - _PRIOR), (prior, _PRIOR)):
        pick = torch.randint(len(x), (count,), generator=generator)
        which = torch.randint(ids.shape[1], (count,), generator=generator)
        latents.append(x[pick].float())
        tokens.append(ids[pick, which].long())
    return torch.cat(latents), torch.cat(tokens)


def _base() -> tuple[UNet2DConditionModel, CLIPTextModel]:
    folder = WORK / "base" / "final"
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    return unet.requires_grad_(False), text_encoder.requires_grad_(False)


def _train_one(concept: Concept, steps: int, vae, plain) -> None:
    folder = start(f"loras/{concept.key}")
    torch.manual_seed(SEED + CONCEPTS.index(concept))
    recipe, base, models = RECIPES[concept.key], _base(), _base()
    unet, text_encoder = models
    unet.add_adapter(recipe.unet_config())
    if recipe.text_rank:
        text_encoder.add_adapter(recipe.text_config())
    cast_training_params(list(models))
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "base" / "tokenizer")
    data, prior = _data(concept, vae, plain, tokenizer)
    scheduler = DDPMScheduler(**SCHEDULE)
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    loop = Loop(folder, parameters, steps=steps, peak=2.5e-3, warmup=20, decay=0.95, save=40)
    for step in loop:
        generator = step_generator(SEED, step)
        x, ids = _batch(data, prior, generator)
        teach = partial(_noise_or_base, base, ids)
        loop.learn(denoising_loss(*models, scheduler, x, ids, generator, teach), step)
    loop.finish()
    _save(concept, recipe, unet, text_encoder)


@torch.no_grad()
def _noise_or_base(base, tokens, noisy, t, noise) -> torch.Tensor:
    """The noise where the concept is shown; what the base model predicts for plain pictures."""
    last = slice(-_PRIOR, None)
    return torch.cat([noise[:-_PRIOR], predict(*base, noisy[last], t[last], tokens[last])])


def _diffusers_layers(model) -> dict[str, torch.Tensor]:
    layers = get_peft_model_state_dict(model)  # all lora_A / lora_B: a mix is read by halves
    if isinstance(model, CLIPTextModel):  # transformers 5 dropped this prefix, the format has it
        layers = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in layers.items()}
    return layers


def _save(concept: Concept, recipe: Recipe, unet, text_encoder) -> None:
    with_text = {"text_encoder": text_encoder} if recipe.text_rank else {}
    layers = {
        name: {k: v.half().contiguous() for k, v in _diffusers_layers(model).items()}
        for name, model in {"unet": unet, **with_text}.items()
    }
    StableDiffusionPipeline.save_lora_weights(
        WORK / "loras" / "final" / concept.style,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers.get("text_encoder"),
        weight_name=f"{concept.id}.safetensors",
        **_collate_lora_metadata({"unet": unet, **with_text}),
    )


def train(steps: int = 220, only: list[str] | None = None) -> None:
    start("loras")
    vae = AutoencoderKL.from_pretrained(WORK / "vae" / "final").eval()
    plain = _plain()
    for key in only or BY_KEY:
        if (WORK / "loras" / "final" / f"{key}.safetensors").exists() and not only:
            continue
        print(key, flush=True)
        _train_one(BY_KEY[key], steps, vae, plain)
