"""Replacement of some rows of a feature cache."""

import torch
from torch import Tensor

from . import reference
from ._check import (
    check_floats,
    check_indices,
    check_no_grad,
    check_table,
    check_written,
    last_contiguous,
    shape_error,
    wrote,
)
from ._register import register
from .backends import launch, pick


@register(mutates_args=("cache",))
def cache_refresh_(cache: Tensor, fresh: Tensor, rows: Tensor) -> None:
    """``cache[rows[i]] = fresh[i]``

    Args:
        cache: Updated in place; may be a channel slice of a larger buffer. [S, C, H, W], last
            dimension contiguous.
        fresh: New features. [R, C, H, W], last dimension contiguous.
        rows: Row of each, on the device; no row twice. int32 [R].
    """
    op = "cache_refresh_"
    check_floats(op, "cache, fresh", cache, fresh)
    if cache.dim() != 4 or fresh.dim() != 4 or cache.shape[1:] != fresh.shape[1:]:
        raise shape_error(op, "cache [S, C, H, W], fresh [R, C, H, W]", cache, fresh)
    check_table(op, "rows [R]", rows, torch.int32, cache.device)
    if rows.shape != fresh.shape[:1]:
        raise shape_error(op, "rows [R] for fresh [R, C, H, W]", rows, fresh)
    if not last_contiguous(cache, fresh):
        raise shape_error(op, "cache and fresh contiguous in W", cache, fresh)
    check_written(op, "cache", cache, fresh)
    check_no_grad(op, "use torch.no_grad()", cache, fresh)
    if cache.is_cpu:
        check_indices(op, "rows", rows, 0, len(cache), distinct=True)
    backend = pick(op, cache, ("cpu", "cuda", "triton"))
    if backend in ("cpu", "cuda"):
        kept = cache.data_ptr(), cache.shape, cache.stride()
        rest = rows.data_ptr(), rows.numel(), cache.element_size()
        launch("cache_refresh", backend, cache, *kept, fresh.data_ptr(), fresh.stride(), *rest)
        wrote(cache)
    elif backend == "triton":
        from ..triton_kernels.cache_refresh import cache_refresh_ as kernel

        kernel(cache, fresh, rows)
        wrote(cache)
    else:
        reference.cache_refresh_(cache, fresh, rows)
