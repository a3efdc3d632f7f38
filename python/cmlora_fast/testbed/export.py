"""Copy what was trained from the work folder into the package data, weights in fp16."""

import json
import shutil

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from .concepts import IDS, lora_info
from .load import DATA
from .pools import WORK
from .train_base import SCHEDULE


def _pipeline() -> StableDiffusionPipeline:
    base = WORK / "base"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(WORK / "vae" / "final"),
        text_encoder=CLIPTextModel.from_pretrained(base / "final" / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(base / "final" / "unet"),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _export_tokenizer_files() -> None:
    """vocab.json and merges.txt too: transformers before 5 reads these."""
    folder = DATA / "pipeline" / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def export() -> None:
    """Write pipeline, LoRAs, scorer and lora_info.json as far as they are trained."""
    pipe = _pipeline().to(dtype=torch.float16)
    pipe.save_pretrained(DATA / "pipeline", safe_serialization=True)
    _export_tokenizer_files()
    (DATA / "lora").mkdir(exist_ok=True)
    for name in IDS:
        source = WORK / "loras" / "final" / f"{name}.safetensors"
        if source.exists():
            shutil.copyfile(source, DATA / "lora" / source.name)
    if (WORK / "scorer" / "scorer.safetensors").exists():
        shutil.copyfile(WORK / "scorer" / "scorer.safetensors", DATA / "scorer.safetensors")
    (DATA / "lora_info.json").write_text(json.dumps(lora_info(), indent=2) + "\n")


if __name__ == "__main__":
    export()
