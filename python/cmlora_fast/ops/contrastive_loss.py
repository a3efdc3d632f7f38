"""How little the attention maps of different concepts differ, and where to move them."""

import torch
from torch import Tensor

from .. import _C
from . import reference
from ._check import check_floats, check_table, shape_error
from ._register import register
from .backends import launch, pick
from .tensors import is_real


def _fake(maps, index, labels, temperature=0.5):
    kind = {"dtype": torch.float32}
    return maps.new_empty(maps.shape[1], **kind), maps.new_empty(maps.shape, **kind)


@register(fake=_fake)
def contrastive_loss(
    maps: Tensor, index: Tensor, labels: Tensor, temperature: float = 0.5
) -> tuple[Tensor, Tensor]:
    """``L = mean -log(exp(s_ij/τ) / (exp(s_ij/τ) + Σ_k exp(s_ik/τ)))`` and ``dL/d maps``

    NT-Xent over the ordered pairs (i, j) of one concept, k over the maps of the others; s is the
    cosine of two maps less their minima. A map that is constant to rounding takes no part; without
    a pair, or with one concept only, loss and gradient are 0. Nothing waits for the device. The
    gradient is returned, autograd records none.

    Args:
        maps: Tracked maps, each of one token of one row. [S, B, r, q].
        index: Tracked map of each map in the loss; one may serve several concepts. int32 [K].
        labels: Concept of each map in the loss. int32 [K].
        temperature: τ > 0.

    Returns:
        Loss [B] and gradient [S, B, r, q]; float32.
    """
    op = "contrastive_loss"
    check_floats(op, "maps", maps)
    if maps.dim() != 4 or 0 in maps.shape[2:]:
        raise shape_error(op, "maps [S, B, r, q]", maps)
    for name, table in (("index [K]", index), ("labels [K]", labels)):
        check_table(op, name, table, torch.int32, maps.device)
    if index.dim() != 1 or index.shape != labels.shape:
        raise shape_error(op, "index and labels of one length", index, labels)
    if not (is_real(temperature) and temperature > 0):
        raise ValueError(f"{op}: expected temperature > 0; got {temperature!r}")
    S, K = maps.shape[0], index.numel()
    if index.is_cpu and K:
        places = index.numpy()  # read without an op of torch's: replays count those
        if not 0 <= places.min() <= places.max() < S:
            raise ValueError(f"{op}: expected index in 0 .. {S - 1}; got {places.tolist()}")
    kernel = pick(op, maps, ("cuda",)) == "cuda" and maps.dtype is torch.float32
    if not kernel or not maps.is_contiguous() or not _C.cuda.contrastive_loss_fits(S, K):
        return reference.contrastive_loss(maps.detach(), index, labels, temperature)
    loss, gradient = _fake(maps, index, labels)
    addresses = (tensor.data_ptr() for tensor in (loss, gradient, maps, index, labels))
    sizes = S, maps.shape[1], maps.shape[2] * maps.shape[3], K
    launch("contrastive_loss", "cuda", maps, *addresses, sizes, temperature)
    return loss, gradient
