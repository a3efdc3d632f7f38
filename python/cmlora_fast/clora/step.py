"""CLoRA's step: contrastive update of the latents, masks from attention, fusion of the rows.

The algorithm never asks what a loss or a mask is, so nothing here waits for a device: how often the
latents move stands in the method. On a GPU three passes are recorded and replayed (clora spec
§6.3): all rows with a gradient, up to the tapped layers with a gradient, all rows without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..methods.clora import PROMPT_LENGTH, CLoRA, Row
from ..ops.reference import mask_shares
from ..unet.executor import Executor
from ..unet.inputs import UNetInputs
from ..unet.rows import Rows, RowTable
from ..unet.tap import stage_size
from .masks import row_masks
from .tracked import Tracked

__all__ = ["Contrast", "ContrastStep"]


@dataclass(frozen=True)
class ContrastStep:
    """What one step of CLoRA gives.

    Args:
        noise: Fused predictions for the pipeline. [batch, C, H, W].
        correction: To add to the sample that the scheduler gets, None without an update.
        losses: Every loss evaluated, None without any. [evaluations, images].
        masks: 0 and 1, or the weights that a user gave. [J, images, H, W].
        shares: Share of each row in the prediction, a mean over pixels. [images, J].
        maps: Of image 0, for the tracked tokens; None where nothing reads them. [J, r, q, K].
    """

    noise: Tensor
    correction: Tensor | None
    losses: Tensor | None
    masks: Tensor
    shares: Tensor
    maps: Tensor | None


class Contrast:
    """Runs the rows of a ``CLoRA`` method (clora spec §3.4, §4).

    Args:
        method: The method.
        rows: Its rows, the base row first.
        executor: Prepared with one subset and one prompt per row.
        steps: T.
        record: Track all tokens rather than those that the rows name.
        sample: The first one that the UNet gets.
        channels: How many of its channels are latents; inpainting adds others.
    """

    def __init__(
        self,
        method: CLoRA,
        rows: Sequence[Row],
        executor: Executor,
        steps: int,
        record: bool,
        sample: Tensor,
        channels: int,
    ):
        self._method, self._rows, self._steps = method, rows, steps
        self._executor, self._tap = executor, executor.tap
        self._channels, device = channels, sample.device
        tracked = Tracked.of(rows)
        self._contrasts = tracked.contrasts
        # All that a recorded pass depends on beside its arguments.
        self._setting = tracked, len(rows), record, method.maps_from, method.temperature
        columns = tuple(range(PROMPT_LENGTH)) if record else tracked.columns or (0,)
        places = [columns.index(token) for token in tracked.token]
        self._reads_maps = record or method.masks is None
        self._places, self._row_of_map = (
            torch.tensor(table, dtype=torch.int64, device=device) for table in (places, tracked.row)
        )
        self._columns, self._index, self._labels, self._mask_row = (
            torch.tensor(table, dtype=torch.int32, device=device)
            for table in (columns, tracked.index, tracked.labels, tracked.mask_row)
        )
        self._given = None
        if method.masks is not None:
            names = [row.adapter for row in rows]
            self._given = row_masks(method.masks, names, sample.shape[-2:], device)

    def step(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        table: RowTable,
        index: int,
        images: int,
        scale: float,
    ) -> ContrastStep:
        """One denoising step.

        Args:
            plain: The UNet's own forward.
            inputs: The pipeline's UNet call; its batch is guidance parts times ``images``.
            table: All rows with every sample.
            index: Step i.
            images: Images of this call; they share the rows' prompts.
            scale: What ``scheduler.scale_model_input`` multiplied the latents by.
        """
        method = self._method
        start = z = inputs.sample[:images, : self._channels]
        updates = method.updates(index, self._steps) if self._contrasts else 0
        losses: list[Tensor] = []
        noise = raw = None
        for i in range(updates):
            # Released order: what is predicted before the last update is used after it.
            whole = i == updates - 1 and not method.refresh_after_update
            gradient = partial(self._gradient, table, images, whole)
            loss, slope, raw, noise = self._run(gradient, inputs, table, z, images, whole)
            losses.append(loss)
            # d/d latents = scale * d/d input; the input moves by scale times what the latents do.
            z = z - (method.step_size * scale**2 * slope).to(z.dtype)
        if noise is None:
            predict = partial(self._predict, plain, table)
            noise, raw = self._run(predict, inputs, table, z, images, None)
        maps = None if raw is None else self._mean(raw, inputs.sample.shape, images)
        masks = self._masks(maps, index, images, inputs.sample.shape[-2:])
        shares = mask_shares(masks)
        return ContrastStep(
            noise=self._fuse(noise, shares, inputs.batch // images),
            correction=None if z is start else (z - start) / scale,
            losses=torch.stack(losses) if losses else None,
            masks=masks,
            shares=shares.mean((2, 3)).t(),
            maps=None if maps is None else maps[:, 0],
        )

    def _run(
        self,
        function: Callable[[UNetInputs], tuple[Tensor | None, ...]],
        inputs: UNetInputs,
        table: RowTable,
        z: Tensor,
        images: int,
        kind: bool | None,
    ) -> tuple[Tensor | None, ...]:
        """A pass at latents ``z``, replayed where one of its kind has been recorded."""
        key = "CLoRA", kind, images, self._reads_maps, *self._setting
        return self._executor.replayed(function, self._at(inputs, z), table, key, kind is None)

    def _gradient(
        self, table: RowTable, images: int, whole: bool, inputs: UNetInputs
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Loss (images,), dL/dz, maps (J * batch, queries, K), predictions (if ``whole``)."""
        leaf = inputs.sample[:images, : self._channels].detach().requires_grad_(True)
        run = partial(self._executor.run_tapped, whole=whole)
        chunks = self._executor.chunks(inputs, table)
        passes = partial(self._passes, inputs, chunks, leaf)
        raw = loss = pull = None
        if len(chunks) > 1:
            # The loss compares the maps of all rows, but only one chunk's graph is to be alive:
            # first the maps without graphs, then, with dL/d maps known, chunk by chunk again.
            ends = partial(self._executor.run_tapped, whole=False)
            with torch.no_grad():
                raw = torch.cat([maps for _, maps in passes(ends)])
        pieces, slope, start = [], torch.zeros_like(leaf), 0
        with torch.enable_grad():
            for noise, maps in passes(run):
                if pull is None:
                    raw = maps.detach() if raw is None else raw
                    loss, pull = self._pull(raw, inputs.sample.shape, images)
                stop = start + len(maps)
                slope += torch.autograd.grad(maps, leaf, pull[start:stop])[0]
                pieces.append(noise)
                start = stop
        return loss, slope, raw, torch.cat(pieces) if whole else None

    def _passes(
        self,
        inputs: UNetInputs,
        chunks: Sequence[Rows],
        z: Tensor,
        run: Callable[[UNetInputs, Rows], Tensor | None],
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        """What ``run`` gives, and maps, of each chunk of rows at ``z``, one after another."""
        for rows in chunks:
            call = self._at(inputs, z)
            with self._tap.listening(stage_size(z.shape), self._columns):
                noise = run(call, rows)
                maps = self._tap.maps()
            yield noise, maps

    def _predict(
        self, plain: Callable[..., Any], table: RowTable, inputs: UNetInputs
    ) -> tuple[Tensor, Tensor | None]:
        """Predictions (J * batch, C, H, W) and, where they are read, maps."""
        if not self._reads_maps:
            return self._executor.run(plain, inputs, table, None), None
        z, run = inputs.sample[:, : self._channels], partial(self._executor.run_rows, plain)
        chunks = self._executor.chunks(inputs, table)
        noise, maps = zip(*self._passes(inputs, chunks, z, run), strict=True)
        return torch.cat(noise), torch.cat(maps)

    def _at(self, inputs: UNetInputs, z: Tensor) -> UNetInputs:
        """The call for latents ``z`` (images, C, H, W)."""
        latents = z.repeat(inputs.batch // len(z), 1, 1, 1)
        others = inputs.sample[:, self._channels :]
        return replace(inputs, sample=torch.cat([latents, others], 1))

    def _pull(self, raw: Tensor, latents: torch.Size, images: int) -> tuple[Tensor, Tensor]:
        """The loss (images,) and dL/d maps (J * batch, queries, K)."""
        leaf = raw.detach().requires_grad_(True)
        tracked = self._select(self._mean(leaf, latents, images))
        temperature = self._method.temperature
        loss, slope = ops.contrastive_loss(tracked.detach(), self._index, self._labels, temperature)
        return loss, torch.autograd.grad(tracked, leaf, slope.to(tracked.dtype))[0]

    def _mean(self, raw: Tensor, latents: torch.Size, images: int) -> Tensor:
        """Maps (J, images, r, q, K) over guidance parts of (J * batch, queries, K)."""
        maps = raw.view(len(self._rows), -1, images, *stage_size(latents), raw.shape[-1])
        return maps[:, -1] if self._method.maps_from == "cond" else maps.mean(1)

    def _select(self, maps: Tensor) -> Tensor:
        """The tracked maps, [S, images, r, q], of (J, images, r, q, K)."""
        return maps[self._row_of_map, ..., self._places]

    def _masks(self, maps: Tensor | None, index: int, images: int, size: tuple[int, int]) -> Tensor:
        """(J, images, H, W); all 1 before ``apply_mask_after``."""
        method, count = self._method, len(self._rows)
        if index < method.apply_mask_after:
            return torch.ones(count, images, *size, device=self._columns.device)
        if self._given is not None:
            return self._given[:, None].repeat(1, images, 1, 1)
        return ops.attention_masks(
            self._select(maps),
            self._mask_row,
            count,
            size,
            method.mask_threshold_alpha,
            method.mask_dilate,
            method.mask_erode,
            method.mask_opening,
            method.mask_closing,
        )

    def _fuse(self, noise: Tensor, shares: Tensor, parts: int) -> Tensor:
        """(J * batch, C, H, W) -> (batch, C, H, W)."""
        images = shares.shape[1]
        rows = noise.view(len(self._rows), parts, images, *noise.shape[1:]).transpose(0, 1)
        out = noise.new_empty(parts, images, *noise.shape[1:])
        ops.combine_(out, rows, shares)
        return out.flatten(0, 1)
