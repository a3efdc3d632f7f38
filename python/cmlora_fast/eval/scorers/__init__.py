"""What tells how good an image is. One module each; the heavy ones need the extra ``eval``."""

from .base import Scene, Scorer
from .embedded import EmbeddedScorer

__all__ = ["EmbeddedScorer", "Scene", "Scorer"]
