"""An image as data: everything that determines it, and the name that follows from that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import __version__

__all__ = ["Adapter", "Generation", "Job", "digest", "model_digest"]

KEY_LENGTH = 20  # hexadecimal digits of a SHA-256: 80 bits
WHOLE = 256 * 2**20  # larger files are known by their size and both ends
END = 2**20
WEIGHTS = (".safetensors", ".bin", ".ckpt")


@dataclass(frozen=True)
class Adapter:
    """One active LoRA: its name, its weight and the digest of its file."""

    name: str
    digest: str
    weight: float = 1.0


@dataclass(frozen=True)
class Generation:
    """What all images of a run share. None: the model's or diffusers' own.

    Args:
        model: What the pipeline was loaded from.
        digest: Of its weights, see ``model_digest``.
        lora_scale: Multiplies every adapter in UNet and text encoder.
    """

    model: str
    digest: str
    negative_prompt: str = ""
    steps: int = 20
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    vae: str | None = None
    scheduler: str | None = None
    dtype: str = "float32"
    lora_scale: float = 1.0
    guidance_rescale: float = 0.0
    clip_skip: int | None = None
    eta: float = 0.0


@dataclass(frozen=True)
class Job:
    """One image.

    Args:
        generation: What it shares with the others.
        prompt: Of this image.
        adapters: Active LoRAs in order; none: the base model.
        method: An instance of a method of cmlora_fast; None: lossless.
        seed: Of its generator.
    """

    generation: Generation
    prompt: str
    adapters: tuple[Adapter, ...]
    method: Any
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data; equal for equal images."""
        method = None
        if self.method is not None and self.adapters:
            method = {"name": type(self.method).__name__, **dataclasses.asdict(self.method)}
        return {
            "version": __version__,
            **dataclasses.asdict(self.generation),
            "prompt": self.prompt,
            "adapters": [dataclasses.asdict(adapter) for adapter in self.adapters],
            "method": method,
            "seed": self.seed,
        }

    @property
    def key(self) -> str:
        """The image's name: a digest of its content's causes."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


@cache
def digest(path: Path) -> str:
    """SHA-256 of a file; of a large one its size, its first and its last MiB."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE:
            return hashlib.sha256(file.read()).hexdigest()[:KEY_LENGTH]
        ends = file.read(END)
        file.seek(-END, 2)
        return hashlib.sha256(b"%d" % size + ends + file.read()).hexdigest()[:KEY_LENGTH]


def model_digest(place: str | Path) -> str:
    """What tells a model on this disk from another: its weights. A hub id stands for itself."""
    path = Path(place).expanduser()
    if path.is_file():
        return digest(path)
    files: Sequence[Path] = sorted(f for f in path.rglob("*") if f.suffix in WEIGHTS)
    if not files:
        return ""
    text = "".join(f"{file.relative_to(path)} {digest(file)}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
