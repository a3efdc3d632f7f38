"""Load the shipped pipeline and LoRAs. Offline: everything is package data."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log

from .concepts import IDS, concepts_of

DATA = Path(__file__).parent / "data"


def load_pipeline(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The base pipeline without LoRAs: 64 x 64 images, latents [B, 4, 16, 16]."""
    pipe = StableDiffusionPipeline.from_pretrained(
        DATA / "pipeline", torch_dtype=dtype, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lora_path(id: str, style: str = "anime") -> Path:
    """The safetensors file of one LoRA."""
    concepts = {c.id: c for c in concepts_of(style)}
    if id not in concepts:
        raise ValueError(f"lora_path: expected one of {', '.join(IDS)}; got {id!r}")
    return DATA / "lora" / f"{concepts[id].key}.safetensors"


def load_loras(
    pipe: StableDiffusionPipeline, ids: Sequence[str] | None = None, style: str = "anime"
) -> None:
    """Load LoRAs with `pipe.load_lora_weights`, adapter name = id (default: the style's eleven)."""
    levels = diffusers_log.get_verbosity(), transformers_log.get_verbosity()
    diffusers_log.set_verbosity_error()  # both report that UNet-only LoRAs lack text-encoder keys
    transformers_log.set_verbosity_error()
    try:
        for id in IDS if ids is None else ids:
            path = lora_path(id, style)
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=id)
    finally:
        diffusers_log.set_verbosity(levels[0])
        transformers_log.set_verbosity(levels[1])
