"""Which row draws which pixels, from the attention maps of its words."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from ._check import check_floats, check_indices, check_table, shape_error
from ._register import register


def _fake(maps, mask_row, rows, size, *args, **kwargs):
    return maps.new_empty(rows, maps.shape[1], *size, dtype=torch.float32)


@register(fake=_fake)
def attention_masks(
    maps: Tensor,
    mask_row: Tensor,
    rows: int,
    size: Sequence[int],
    threshold: float = 0.4,
    dilate: bool = False,
    erode: bool = False,
    opening: bool = False,
    closing: bool = False,
) -> Tensor:
    """``M_j = any_s(maps_s > threshold · max maps_s)`` over the maps s of row j, upsampled

    Before the nearest upsampling: 3x3 morphology in the order of the arguments, then row 0 gets
    the pixels that no row claims. Masks may overlap. Nothing waits for the device. No autograd.

    Args:
        maps: Tracked maps, each of one token of one row. [S, B, r, q].
        mask_row: Row whose mask a map makes, -1 for none. int32 [S].
        rows: J.
        size: (H, W).
        threshold: Share of a map's maximum; a pixel has to be above it.
        dilate, erode: 3x3 maximum, minimum; outside the map counts as background for the one, as
            foreground for the other.
        opening, closing: Erode then dilate, dilate then erode.

    Returns:
        0 and 1, float32 [J, B, H, W].
    """
    op = "attention_masks"
    check_floats(op, "maps", maps)
    if maps.dim() != 4 or 0 in maps.shape[2:]:
        raise shape_error(op, "maps [S, B, r, q]", maps)
    check_table(op, "mask_row [S]", mask_row, torch.int32, maps.device)
    if mask_row.shape != maps.shape[:1]:
        raise shape_error(op, "mask_row [S], maps [S, B, r, q]", mask_row, maps)
    if rows < 1 or len(size) != 2 or min(size) < 1:
        raise ValueError(f"{op}: expected rows >= 1 and size (H, W); got {rows}, {tuple(size)}")
    if mask_row.is_cpu:  # a device is not waited for
        check_indices(op, "mask_row", mask_row, -1, rows)
    flags = (dilate, erode, opening, closing)
    return reference.attention_masks(maps.detach(), mask_row, rows, size, threshold, *flags)
