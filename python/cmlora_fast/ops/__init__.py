"""Public ops. In-place ops (trailing underscore) write into a tensor their caller owns."""

from .backends import force
from .cache_refresh import cache_refresh_
from .combine import combine_
from .lora_delta import lora_delta, lora_delta_
from .lora_fold import lora_fold
from .radial_amplitude import radial_amplitude

__all__ = [
    "cache_refresh_",
    "combine_",
    "force",
    "lora_delta",
    "lora_delta_",
    "lora_fold",
    "radial_amplitude",
]
