"""Public ops. In-place ops (trailing underscore) write into a tensor their caller owns."""

from .add_shift import add_shift
from .attention import attention
from .attention_masks import attention_masks
from .attention_tap import attention_tap
from .backends import force
from .cache_refresh import cache_refresh_
from .combine import combine_
from .contrastive_loss import contrastive_loss
from .decide import decide_
from .geglu import geglu
from .group_norm import group_norm
from .im2col import col2im, im2col
from .layer_norm import add_layer_norm, layer_norm
from .lora_delta import lora_delta, lora_delta_
from .lora_fold import lora_fold
from .lora_linear import lora_linear
from .radial_amplitude import radial_amplitude
from .scale_ranks import scale_ranks_

__all__ = [
    "add_layer_norm",
    "add_shift",
    "attention",
    "attention_masks",
    "attention_tap",
    "cache_refresh_",
    "col2im",
    "combine_",
    "contrastive_loss",
    "decide_",
    "force",
    "geglu",
    "group_norm",
    "im2col",
    "layer_norm",
    "lora_delta",
    "lora_delta_",
    "lora_fold",
    "lora_linear",
    "radial_amplitude",
    "scale_ranks_",
]
