"""A model's layers without its weights: modules made from the configuration on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .errors import CliError
from .pipelines import EMBEDDED, load_pipeline, text_encoders

__all__ = ["model_on_meta"]

_ENCODERS = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}


def model_on_meta(model: str) -> dict[str, Any]:
    """Component -> module, for a diffusers directory or the embedded model."""
    if model == EMBEDDED:
        pipe = load_pipeline(EMBEDDED, device="cpu")
        return {"unet": pipe.unet, **text_encoders(pipe)}
    folder = Path(model).expanduser()
    if not (folder / "unet" / "config.json").is_file():
        raise CliError(f"--model {model}: expected a diffusers directory with unet/config.json")
    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel.from_config(_json(folder / "unet" / "config.json"))}
        for name in ("text_encoder", "text_encoder_2"):
            path = folder / name / "config.json"
            config = _json(path) if path.is_file() else {}
            cls = _ENCODERS.get((config.get("architectures") or [""])[0])
            if cls is not None:
                parts[name] = cls(CLIPTextConfig(**config))
    return parts


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
