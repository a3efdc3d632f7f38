"""Plain torch versions of every op: definition, fallback, test oracle and benchmark baseline.

Sizes: ``rows`` samples of the UNet batch, ``tokens`` per sample, ``K`` input and ``N`` output
features, ``ΣR`` the ranks of all adapters side by side, ``S`` adapters (slots), ``nnz`` entries of
the row table. float16 and bfloat16 are accumulated in float32, float64 in float64.
"""

from .clora import *  # noqa: F403
from .latents import *  # noqa: F403
from .layers import *  # noqa: F403
from .lora import *  # noqa: F403
