"""The embedded testbed: a small trained Stable Diffusion pipeline, ten LoRAs and a scorer.

Everything loads offline from package data; README.md beside this file says how it was made.
"""

from .concepts import CATEGORIES, IDS, NEGATIVE_PROMPT, lora_info, prompt
from .load import load_loras, load_pipeline, lora_path
from .scorer import Scorer

__all__ = [
    "CATEGORIES",
    "IDS",
    "NEGATIVE_PROMPT",
    "Scorer",
    "load_loras",
    "load_pipeline",
    "lora_info",
    "lora_path",
    "prompt",
]
