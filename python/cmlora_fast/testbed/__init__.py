"""The embedded testbed: a small Stable Diffusion pipeline, 22 LoRAs in two styles, a scorer.

Everything loads offline from package data; README.md beside this file says how it was made.
"""

from .concepts import CATEGORIES, GUIDANCE, IDS, NEGATIVE_PROMPT, STYLES, lora_info, prompt
from .load import DATA, load_loras, load_pipeline, lora_path
from .scorer import Scorer

__all__ = [
    "CATEGORIES",
    "DATA",
    "GUIDANCE",
    "IDS",
    "NEGATIVE_PROMPT",
    "STYLES",
    "Scorer",
    "load_loras",
    "load_pipeline",
    "lora_info",
    "lora_path",
    "prompt",
]
