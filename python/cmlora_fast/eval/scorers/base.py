"""What a scorer is given and what it must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..lora_info import LoraEntry

__all__ = ["PRESENT", "Scene", "Scorer", "load_pretrained", "open_image", "require"]

PRESENT = 0.5  # a concept of higher probability counts as shown


@dataclass(frozen=True)
class Scene:
    """An image to be scored and what it should be like.

    Args:
        image: PNG file.
        combination: LoRAs that it should show.
        prompt: That it was painted from.
        reference: The same image without caching, if the scorer wants it and there is one.
        own: id of each LoRA -> images of it alone, if the scorer wants them.
    """

    image: Path
    combination: tuple[LoraEntry, ...]
    prompt: str
    reference: Path | None = None
    own: Mapping[str, Sequence[Path]] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores one image at a time.

    ``wants`` may hold "reference" and "own". ``identity`` tells one scorer's numbers from
    another's: its name and its model.
    """

    name: str
    identity: str
    wants: frozenset[str]

    def check(self) -> None:
        """Load what is needed, or raise one clear error before any image is painted."""
        ...

    def score(self, scene: Scene) -> dict[str, Any]:
        """Name -> number; ``concepts``, if there: id -> probability that the image shows it."""
        ...


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def require(module: str, scorer: str, how: str = 'pip install "cmlora-fast[eval]"') -> Any:
    """Import what an optional package brings, or say how to get it."""
    try:
        return import_module(module)
    except Exception as error:  # a package that is too old fails with anything
        raise ValueError(
            f"scorer {scorer}: needs {module}, which is missing or does not load ({error}): {how}"
        ) from error


def load_pretrained(cls: str, place: str, scorer: str) -> Any:
    """``cls.from_pretrained(place)`` of transformers, or one clear error."""
    import transformers

    try:
        return getattr(transformers, cls).from_pretrained(place)
    except Exception as error:
        raise ValueError(
            f"scorer {scorer}: model {place}: no {cls} can be loaded from there: {error}"
        ) from error
