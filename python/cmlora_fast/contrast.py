"""CLoRA's step: contrastive update of the latents, masks from attention, fusion of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import ops
from .clora_method import PROMPT_LENGTH, CLoRA, Row
from .ops.clora_reference import mask_shares
from .tracked import Tracked
from .unet.executor import Executor
from .unet.inputs import UNetInputs
from .unet.rows import StepRows
from .unet.tap import AttentionTap, stage_size

__all__ = ["Contrast", "ContrastStep"]


@dataclass(frozen=True)
class ContrastStep:
    """What one step of CLoRA gives.

    Args:
        noise: Fused predictions for the pipeline. [batch, C, H, W].
        correction: To add to the sample that the scheduler gets, None without an update.
        losses: Mean loss over the images at every evaluation.
        masks: 0 and 1. [J, images, H, W].
        shares: Share of each row in the prediction, a mean over pixels, per image. [images][J].
        maps: Of image 0, for the tracked tokens. [J, r, q, K].
    """

    noise: Tensor
    correction: Tensor | None
    losses: tuple[float, ...]
    masks: Tensor
    shares: list[list[float]]
    maps: Tensor


class Contrast:
    """Runs the rows of a ``CLoRA`` method (clora spec §3.4, §4).

    Args:
        method: The method.
        rows: Its rows, the base row first.
        executor: Prepared with one subset and one prompt per row.
        tap: Attached to the executor's UNet.
        steps: T.
        record: Track all tokens rather than those that the rows name.
    """

    def __init__(
        self,
        method: CLoRA,
        rows: Sequence[Row],
        executor: Executor,
        tap: AttentionTap,
        steps: int,
        record: bool,
    ):
        self._method, self._rows, self._steps = method, len(rows), steps
        self._executor, self._tap = executor, tap
        self._tracked = Tracked.of(rows)
        self._columns = tuple(range(PROMPT_LENGTH)) if record else self._tracked.columns or (0,)

    def step(
        self, plain: Callable[..., Any], inputs: UNetInputs, index: int, images: int, scale: float
    ) -> ContrastStep:
        """One denoising step.

        Args:
            plain: The UNet's own forward.
            inputs: The pipeline's UNet call; its batch is guidance parts times ``images``.
            index: Step i.
            images: Images of this call; they share the rows' prompts.
            scale: What ``scheduler.scale_model_input`` multiplied the latents by.
        """
        method = self._method
        start = z = inputs.sample[:images]
        updates = method.updates(index, self._steps) if self._tracked.contrasts else 0
        losses: list[Tensor] = []
        noise = None
        for i in range(updates):
            # Released order: what is predicted before the last update is used after it.
            whole = i == updates - 1 and not method.refresh_after_update
            noise, maps, z = self._update(inputs, z, images, scale, losses, whole)
        if noise is None:
            noise, maps = self._predict(plain, inputs, z, images)
        masks = self._masks(maps, index, inputs.sample.shape)
        return ContrastStep(
            noise=self._fuse(noise, masks, inputs.batch // images),
            correction=None if z is start else (z - start) / scale,
            losses=tuple(float(loss) for loss in losses),
            masks=masks,
            shares=mask_shares(masks).mean((2, 3)).t().tolist(),
            maps=maps[:, 0],
        )

    def _update(
        self,
        inputs: UNetInputs,
        z: Tensor,
        images: int,
        scale: float,
        losses: list[Tensor],
        whole: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Predictions (if ``whole``) and maps at ``z``, and ``z`` after one gradient step."""
        leaf = z.detach().requires_grad_(True)
        with torch.enable_grad():
            noise, maps = self._predict(None, inputs, leaf, images, whole)
            tracked = self._select(maps)
        index, labels = (
            torch.tensor(table, dtype=torch.int32, device=z.device)
            for table in (self._tracked.index, self._tracked.labels)
        )
        temperature = self._method.temperature
        loss, gradient = ops.contrastive_loss(tracked.detach(), index, labels, temperature)
        losses.append(loss.mean())
        (slope,) = torch.autograd.grad(tracked, leaf, gradient.to(tracked.dtype))
        # d/d latents = scale * d/d input, and the input moves by scale times what the latents do.
        moved = z - (self._method.step_size * scale**2 * slope).to(z.dtype)
        return noise, maps.detach(), moved.detach()

    def _predict(
        self,
        plain: Callable[..., Any] | None,
        inputs: UNetInputs,
        z: Tensor,
        images: int,
        whole: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """Predictions (J * batch, C, H, W) and maps (J, images, r, q, K) at ``z``.

        Without ``plain`` a graph is recorded from ``z`` to the maps.
        """
        batch, device = inputs.batch, z.device
        columns = torch.tensor(self._columns, device=device)
        call = replace(inputs, sample=z.repeat(batch // images, 1, 1, 1))
        every = range(self._rows * batch)
        rows = StepRows(tuple(range(self._rows)), batch, tuple(every))
        self._tap.open(*stage_size(inputs.sample.shape), columns)
        try:
            if plain is None:
                noise = self._executor.with_gradient(call, rows, whole)
            else:
                noise = self._executor.run(plain, call, rows, None, None)
            maps = self._tap.maps()
        finally:
            self._tap.close()
        height, width = stage_size(inputs.sample.shape)
        maps = maps.view(self._rows, batch // images, images, height, width, -1)
        return noise, maps[:, -1] if self._method.maps_from == "cond" else maps.mean(1)

    def _select(self, maps: Tensor) -> Tensor:
        """The tracked maps, [S, images, r, q], of (J, images, r, q, K)."""
        rows = torch.tensor(self._tracked.row, device=maps.device)
        places = [self._columns.index(token) for token in self._tracked.token]
        return maps[rows, ..., torch.tensor(places, device=maps.device)]

    def _masks(self, maps: Tensor, index: int, latents: torch.Size) -> Tensor:
        """(J, images, H, W), 0 or 1; all 1 before ``apply_mask_after``."""
        method = self._method
        if index < method.apply_mask_after:
            return maps.new_ones(self._rows, maps.shape[1], *latents[-2:])
        return ops.attention_masks(
            self._select(maps),
            torch.tensor(self._tracked.mask_row, dtype=torch.int32, device=maps.device),
            self._rows,
            tuple(latents[-2:]),
            method.mask_threshold_alpha,
            method.mask_dilate,
            method.mask_erode,
            method.mask_opening,
            method.mask_closing,
        )

    def _fuse(self, noise: Tensor, masks: Tensor, parts: int) -> Tensor:
        """(J * batch, C, H, W) -> (batch, C, H, W)."""
        images = masks.shape[1]
        rows = noise.view(self._rows, parts, images, *noise.shape[1:]).transpose(0, 1)
        out = noise.new_empty(parts, images, *noise.shape[1:])
        ops.mask_fuse_(out, rows, masks)
        return out.flatten(0, 1)
