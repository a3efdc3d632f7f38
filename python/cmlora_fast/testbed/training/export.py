"""Copy what was trained from the work folder into the package data, weights in fp16."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from ..concepts import BY_KEY, STYLES, lora_info
from ..load import DATA
from .pools import WORK
from .train_base import SCHEDULE

STRENGTH = 1.4  # times every LoRA's alpha: at 1 some concepts stay pale (decided on choice seeds)


def _pipeline() -> StableDiffusionPipeline:
    base = WORK / "base"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(WORK / "decoder" / "final"),
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
    """Write pipeline, LoRAs, scorer and info files as far as they are trained."""
    pipe = _pipeline().to(dtype=torch.float16)
    pipe.save_pretrained(DATA / "pipeline", safe_serialization=True)
    _export_tokenizer_files()
    for key in BY_KEY:
        export_lora(key)
    for name in ("scorer.safetensors", "accuracy.json"):
        _copy(WORK / "scorer" / name, DATA / name)
    for style in STYLES:
        text = json.dumps(lora_info(style), indent=2) + "\n"
        (DATA / f"{style}_lora_info.json").write_text(text)


def export_lora(key: str) -> None:
    """The trained tensors as they are, with stronger alphas and without this machine's paths."""
    source = WORK / "loras" / "final" / f"{key}.safetensors"
    if not source.exists():
        return
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    config = json.loads(metadata["lora_adapter_metadata"])
    for name, value in config.items():
        if name.endswith(".lora_alpha"):
            config[name] = round(STRENGTH * value, 3)
        elif name.endswith(".base_model_name_or_path"):
            config[name] = None
    metadata["lora_adapter_metadata"] = json.dumps(config, indent=2, sort_keys=True)
    save_file(tensors, DATA / "lora" / f"{key}.safetensors", metadata)


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


if __name__ == "__main__":
    export()
