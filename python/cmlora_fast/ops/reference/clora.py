"""Plain torch versions of CLoRA's ops: attention tap, contrastive loss, masks.

Meral et al., ICCV 2025, as released; the ops of these names say more about each. Sizes: ``S``
tracked maps, each of one token of one row; ``K`` maps in the loss; ``J`` rows of an image, ``B``
images; ``r x q`` pixels of a map, ``H x W`` of the latents. float16 and bfloat16 are computed in
float32, float64 in float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import accumulator

__all__ = [
    "attention_masks",
    "attention_tap",
    "claim_rest",
    "contrastive_loss",
]

# Maps flatter than this, relative to their largest value, are rounding noise around a constant
# (float32 sums of 80 probabilities) and have no direction; the release divides by zero there.
FLAT = 1e-6


def attention_tap(
    q: Tensor, k: Tensor, columns: Tensor, heads: int, scale: float | None = None
) -> Tensor:
    """q [R, queries, heads * D], k [R, keys, heads * D], columns [C] -> [R, queries, C]."""
    dtype = accumulator(q.dtype)
    q, k = (tokens.to(dtype).unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (q, k))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    probabilities = ((q @ k.transpose(-1, -2)) * scale).softmax(-1)
    return probabilities.index_select(-1, columns).sum(1)


def contrastive_loss(
    maps: Tensor, index: Tensor, labels: Tensor, temperature: float = 0.5
) -> tuple[Tensor, Tensor]:
    """NT-Xent over attention maps, and its closed-form gradient.

    ``e = (a - min a) / |a - min a|``, ``s_ij = e_i · e_j``; the min-max scaling of the release
    cancels in s.

    Args:
        maps: [S, B, r, q].
        index, labels: Tracked map and concept of each map in the loss. int [K].

    Returns:
        Loss [B] and gradient [S, B, r, q], in float32 or float64.
    """
    raw = maps.to(accumulator(maps.dtype)).flatten(2).transpose(0, 1)  # [B, S, P]
    least = raw.amin(2, keepdim=True)
    is_least = (raw == least).to(raw.dtype)
    chosen = (raw - least)[:, index.long()]  # [B, K, P]
    usable = chosen.amax(2) > FLAT * raw[:, index.long()].abs().amax(2)  # [B, K]
    norm = chosen.norm(dim=2, keepdim=True).masked_fill(~usable[..., None], torch.inf)
    unit = chosen / norm
    loss, slope = _nt_xent((unit @ unit.transpose(1, 2)) / temperature, labels, usable)
    pull = (slope + slope.transpose(1, 2)) @ unit / temperature
    pull = (pull - (pull * unit).sum(2, keepdim=True) * unit) / norm
    total = torch.zeros_like(raw).index_add_(1, index.long(), pull)
    share = total.sum(2, keepdim=True) / is_least.sum(2, keepdim=True)
    gradient = (total - is_least * share).transpose(0, 1).contiguous()
    return loss, gradient.view(maps.shape)


def _nt_xent(logits: Tensor, labels: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Loss [B] and ``dL/d logits`` [B, K, K], each ordered entry by itself."""
    same = labels[:, None] == labels
    taking_part = usable[:, :, None] & usable[:, None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pairs = (same & ~itself & taking_part).to(logits.dtype)
    others = logits.masked_fill(same | ~taking_part, -torch.inf)
    rest = others.logsumexp(2, keepdim=True)  # -inf without others: no loss, no slope
    count = pairs.sum((1, 2)).clamp(min=1)
    loss = (pairs * F.softplus(rest - logits)).sum((1, 2)) / count
    miss = pairs * torch.sigmoid(rest - logits)  # 1 - p_ij
    share = (others - rest.clamp(min=torch.finfo(rest.dtype).min)).exp()
    slope = (miss.sum(2, keepdim=True) * share - miss) / count[:, None, None]
    return loss, slope


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
    """0 and 1, float32 [J, B, H, W], from maps [S, B, r, q] and their mask_row [S], -1 for none."""
    maps = maps.to(accumulator(maps.dtype))
    hits = (maps > threshold * maps.amax((2, 3), keepdim=True)).float()
    target = mask_row.long()
    target = target.masked_fill(target < 0, rows)  # one more row for those that make no mask
    masks = (
        hits.new_zeros(rows + 1, *maps.shape[1:]).index_add_(0, target, hits)[:rows].clamp(max=1)
    )
    if dilate:
        masks = _dilate(masks)
    if erode:
        masks = _erode(masks)
    if opening:
        masks = _dilate(_erode(masks))
    if closing:
        masks = _erode(_dilate(masks))
    return F.interpolate(claim_rest(masks), size=tuple(size), mode="nearest")


def claim_rest(masks: Tensor) -> Tensor:
    """Masks [J, B, H, W] with the pixels that nobody claims given to row 0."""
    rest = (masks.sum(0) == 0).to(masks.dtype)
    return torch.cat([masks[:1] + rest, masks[1:]])


def _dilate(masks: Tensor) -> Tensor:
    return F.max_pool2d(masks, 3, stride=1, padding=1)


def _erode(masks: Tensor) -> Tensor:
    return 1 - _dilate(1 - masks)
