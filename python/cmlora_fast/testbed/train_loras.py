"""Train the ten LoRAs: each sees one concept with everything else random, trigger words first.

The recipes differ on purpose (ranks, alphas, attention alone or with convolutions and
feed-forwards, text encoder), so that an engine is tried on every kind of target. A share of plain
pictures without the trigger keeps the rest of the model as it was.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextModel, CLIPTokenizer

from .concepts import BY_ID, IDS
from .pools import WORK, render_concept_pool
from .scenes import caption
from .text import tokenize
from .train_base import SCHEDULE, denoising_loss, encode
from .training import Loop, start, step_generator

SEED = 13
POOL = 600
CAPTIONS_PER_IMAGE = 4
BATCH = 16
_PRIOR = 1  # plain pictures in a batch; two left the trigger words without effect in some seeds
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
    "character_1": Recipe(8, 8, _CONV, conv_rank=4, text_rank=4),
    "character_2": Recipe(16, 8, _FEED_FORWARD),
    "clothing_1": Recipe(8, 8, _CONV, conv_rank=4),
    "clothing_2": Recipe(8, 16, _FEED_FORWARD),
    "style_1": Recipe(8, 8, _CONV + _PROJECTION),
    "style_2": Recipe(4, 4, _CONV),
    "background_1": Recipe(8, 4, _CONV + _PROJECTION),
    "background_2": Recipe(8, 8, _CONV, conv_rank=4, text_rank=8),
    "object_1": Recipe(8, 8, _CONV, conv_rank=4),
    "object_2": Recipe(4, 8, _PROJECTION + _FEED_FORWARD),
}


def _data(concept_id: str, vae, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [N, 4, 16, 16] and tokens [N, CAPTIONS_PER_IMAGE, LENGTH]."""
    seed = 10_000_000 + 1000 * IDS.index(concept_id)
    images, scenes = render_concept_pool(concept_id, BY_ID[concept_id].category, POOL, seed)
    rng = np.random.default_rng(seed)
    captions = [caption(s, rng) for s in scenes for _ in range(CAPTIONS_PER_IMAGE)]
    tokens = tokenize(tokenizer, captions).view(len(scenes), CAPTIONS_PER_IMAGE, -1)
    return encode(vae, images), tokens


def _batch(data, prior, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """BATCH - _PRIOR pictures of the concept and _PRIOR plain ones, with their tokens."""
    latents, tokens = [], []
    for (x, ids), count in ((data, BATCH - _PRIOR), (prior, _PRIOR)):
        pick = torch.randint(len(x), (count,), generator=generator)
        which = torch.randint(ids.shape[1], (count,), generator=generator)
        latents.append(x[pick].float())
        tokens.append(ids[pick, which].long())
    return torch.cat(latents), torch.cat(tokens)


def _train_one(concept_id: str, steps: int, vae, prior) -> None:
    folder = start(f"loras/{concept_id}")
    torch.manual_seed(SEED + IDS.index(concept_id))
    base = WORK / "base"
    unet = UNet2DConditionModel.from_pretrained(base / "final" / "unet").requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(base / "final" / "text_encoder")
    text_encoder.requires_grad_(False)
    recipe = RECIPES[concept_id]
    unet.add_adapter(recipe.unet_config())
    if recipe.text_rank:
        text_encoder.add_adapter(recipe.text_config())
    models = [unet, text_encoder]
    cast_training_params(models)
    data = _data(concept_id, vae, CLIPTokenizer.from_pretrained(base / "tokenizer"))
    scheduler = DDPMScheduler(**SCHEDULE)
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    loop = Loop(folder, parameters, steps=steps, peak=2.5e-3, warmup=20, decay=0.95, save=40)
    for step in loop:
        generator = step_generator(SEED, step)
        x, ids = _batch(data, prior, generator)
        loop.learn(denoising_loss(unet, text_encoder, scheduler, x, ids, generator), step)
    loop.finish()
    _save(concept_id, recipe, unet, text_encoder)


def _diffusers_layers(model) -> dict[str, torch.Tensor]:
    layers = get_peft_model_state_dict(model)  # all lora_A / lora_B: a mix is read by halves
    if isinstance(model, CLIPTextModel):  # transformers 5 dropped this prefix, the format has it
        layers = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in layers.items()}
    return layers


def _save(concept_id: str, recipe: Recipe, unet, text_encoder) -> None:
    with_text = {"text_encoder": text_encoder} if recipe.text_rank else {}
    layers = {
        name: {k: v.half().contiguous() for k, v in _diffusers_layers(model).items()}
        for name, model in {"unet": unet, **with_text}.items()
    }
    StableDiffusionPipeline.save_lora_weights(
        WORK / "loras" / "final",
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers.get("text_encoder"),
        weight_name=f"{concept_id}.safetensors",
        **_collate_lora_metadata({"unet": unet, **with_text}),
    )


def train(steps: int = 220, only: list[str] | None = None) -> None:
    start("loras")
    vae = AutoencoderKL.from_pretrained(WORK / "vae" / "final").eval()
    plain = torch.load(WORK / "base" / "data.pt", weights_only=True)
    for concept_id in only or IDS:
        if (WORK / "loras" / "final" / f"{concept_id}.safetensors").exists() and not only:
            continue
        print(concept_id, flush=True)
        _train_one(concept_id, steps, vae, (plain["latents"], plain["tokens"]))
