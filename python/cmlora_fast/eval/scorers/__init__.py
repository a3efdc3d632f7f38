"""What tells how good an image is. One module each; the heavy ones need the extra ``eval``."""

from .base import Scene, Scorer
from .clip import ClipScorer
from .dino import DinoScorer
from .embedded import EmbeddedScorer
from .fidelity import FidelityScorer, LpipsScorer
from .reward import RewardScorer

__all__ = [
    "ClipScorer",
    "DinoScorer",
    "EmbeddedScorer",
    "FidelityScorer",
    "LpipsScorer",
    "RewardScorer",
    "Scene",
    "Scorer",
]
