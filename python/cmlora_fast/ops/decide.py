"""What a step does where an image decides, without asking the host."""

import torch
from torch import Tensor

from . import reference
from ._check import check_indices, check_no_grad, check_table, check_written, shape_error
from ._register import register
from .backends import launch, pick


def _check(op: str, early: Tensor, weights: Tensor, deep: Tensor, tables: tuple) -> None:
    device = early.device if isinstance(early, Tensor) else None
    check_table(op, "early [B]", early, torch.int32, device)
    check_table(op, "weights [J, batch]", weights, torch.float32, device)
    check_table(op, "deep [3, rows]", deep, torch.int32, device)
    reading, shares, places = tables
    if reading is not None:
        check_table(op, "reading [B]", reading, torch.float32, device)
    check_table(op, "shares [2, J]", shares, torch.float32, device)
    check_table(op, "places [2, F]", places, torch.int32, device)
    images = early.numel()
    if early.dim() != 1 or not images or weights.dim() != 2 or weights.shape[1] % images:
        raise shape_error(op, "early [B], weights [J, batch], a multiple of B", early, weights)
    if reading is not None and reading.shape != early.shape:
        raise shape_error(op, "reading [B] for early [B]", reading, early)
    if shares.shape != (2, weights.shape[0]) or places.dim() != 2 or len(places) != 2:
        raise shape_error(op, "shares [2, J], places [2, F], weights [J, batch]", *tables, weights)
    if deep.shape != (3, places.shape[1] * weights.shape[1]):
        raise shape_error(op, "deep [3, F * batch] for places [2, F]", deep, places, weights)
    if early.is_cpu:  # a device is not waited for
        check_indices(op, "early", early, 0, 2)
        check_indices(op, "places", places, 0, len(weights))
    for name, written in (("early", early), ("weights", weights), ("deep", deep)):
        check_written(op, name, written)
    check_no_grad(op, "use torch.no_grad()", weights)


@register(mutates_args=("early", "weights", "deep"))
def decide_(
    early: Tensor,
    weights: Tensor,
    deep: Tensor,
    reading: Tensor | None,
    shares: Tensor,
    places: Tensor,
    threshold: float,
    latch: bool = True,
    nan_early: bool = False,
) -> None:
    """``early[b] = reading[b] ≥ threshold and (early[b] or not latch)``, and what follows from it

    Sample n of the batch is of image n % B; row j * batch + n is sample n with subset j. The rows
    in ``deep`` are ordered by image, place and guidance part. Nothing waits for the device.

    Args:
        early: Stage of every image, 0 or 1, updated in place. int32 [B].
        weights: Gets the share of each row, ``shares[early]``. float32 [J, batch].
        deep: Gets the rows whose deep part runs; the subset of each; the subset of each of the
            B * F runs of rows with equal ones, then zeros. int32 [3, F * batch].
        reading: Measure of every image, or ``None``: the stages stay. float32 [B].
        shares: Share of each subset, late and early. float32 [2, J].
        places: Subsets whose deep part runs, late and early. int32 [2, F].
        threshold: A reading from here on is early; compared in float64.
        latch: Late stays late.
        nan_early: The stage where a reading is NaN.
    """
    op = "decide_"
    _check(op, early, weights, deep, (reading, shares, places))
    if pick(op, early, ("cuda",)) == "torch":
        rest = (reading, shares, places, threshold, latch, nan_early)
        return reference.decide_(early, weights, deep, *rest)
    addresses = [
        0 if tensor is None else tensor.data_ptr()
        for tensor in (early, weights, deep, reading, shares, places)
    ]
    sizes = early.numel(), weights.shape[0], places.shape[1], weights.shape[1]
    launch("decide", "cuda", early, *addresses, sizes, threshold, latch, nan_early)
