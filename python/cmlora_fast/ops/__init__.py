"""Public ops. In-place ops (trailing underscore) write into a tensor their caller owns."""

from .reference import (
    cache_refresh_,
    combine_,
    lora_delta,
    lora_delta_,
    lora_fold,
    radial_amplitude,
)

__all__ = [
    "cache_refresh_",
    "combine_",
    "lora_delta",
    "lora_delta_",
    "lora_fold",
    "radial_amplitude",
]
