"""y[r] += Σ_k scale_k · (x[r] A_kᵀ) B_kᵀ over the adapters k of row r

Two kernels, as two library products would be: fused, few blocks would each walk all of K.
"""

from torch import Tensor

from .lora_expand import lora_expand
from .lora_shrink import lora_shrink
from .rank_lanes import block_of_ranks


def lora_delta_(
    y: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    slots: Tensor,
    row_ptr: Tensor,
    row_slot: Tensor,
    row_scale: Tensor,
) -> None:
    if not y.numel() or not a.shape[0] or not row_slot.numel():
        return
    tables = slots, row_ptr, row_slot, row_scale
    BLOCK_R = block_of_ranks(a, *tables[:3])
    h, lanes = lora_shrink(x, a, *tables, BLOCK_R)
    lora_expand(y, h, lanes, b, BLOCK_R)
