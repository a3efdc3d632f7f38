"""The embedded testbed's own classifier: which concepts are there."""

from __future__ import annotations

from typing import Any

from ... import testbed
from ...testbed.load import DATA
from ..jobs import model_digest
from .base import PRESENT, Scene, open_image

__all__ = ["EmbeddedScorer"]


class EmbeddedScorer:
    """Presence of each concept; ``composition`` is 1 where all are there."""

    name = "embedded"
    wants: frozenset[str] = frozenset()

    def __init__(self, style: str = "anime") -> None:
        self.style = style
        self._scorer: testbed.Scorer | None = None

    @property
    def identity(self) -> str:
        return f"embedded:{self.style}:{model_digest(DATA / 'scorer.safetensors')}"

    def check(self) -> None:
        self._scorer = testbed.Scorer()

    def score(self, scene: Scene) -> dict[str, Any]:
        """``composition`` (0 or 1), ``recall`` (share of the concepts) and ``concepts``."""
        found = self._scorer.score([open_image(scene.image)], self.style)[0]
        concepts = {entry.id: found[entry.id] for entry in scene.combination}
        shown = [probability > PRESENT for probability in concepts.values()]
        return {
            "composition": float(all(shown)),
            "recall": sum(shown) / len(shown),
            "concepts": concepts,
        }
