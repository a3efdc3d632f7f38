"""The run of CLoRA: its rows at every step, each under its own prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Execution, LoadedAdapters
from ..clora.prompts import RowPrompts, encode_rows
from ..clora.step import Contrast, ContrastStep
from ..methods import CLoRA
from ..unet.executor import Texts, all_pairs
from ..unet.inputs import UNetInputs
from ..unet.rows import RowTable
from .recorder import summed
from .run import Call, Clock, Run
from .settings import BASE, Settings

__all__ = ["ContrastRun", "check_contrast"]


class ContrastRun(Run):
    """The step itself is ``Contrast``'s."""

    gradients = True

    def __init__(self, call: Call):
        super().__init__(call)
        self._method = call.settings.method
        self._prompts: RowPrompts | None = None
        self._contrast: Contrast | None = None

    @staticmethod
    def check(settings: Settings, unet: nn.Module, adapters: LoadedAdapters) -> None:
        if settings.adapter_names is not None:
            got = settings.adapter_names
            raise ValueError(
                f"adapter_names: expected None with CLoRA, whose rows tell; got {got!r}"
            )
        Run.check(settings, unet, adapters)

    def encode(self, encode: functools.partial) -> Any:
        call = self.call
        self._prompts = encode_rows(
            call.border.pipe, self._method, encode, call.adapters.names, call.texts
        )
        return encode()

    def begin(self, inputs: UNetInputs, clock: Clock) -> None:
        call, method, prompts = self.call, self._method, self._prompts
        if prompts is None or clock.lone:
            raise RuntimeError("CLoRA: expected a pipeline call, whose prompt gives the rows")
        border, executor = call.border, call.executor
        execution = call.execution(inputs, gradients=method.latent_update)
        check_contrast(execution.whole, inputs, border.parts(), method, prompts)
        self.execution, self.clock = execution, clock
        self.prepare(inputs)
        executor.tap.attach(border.unet)
        self._contrast = Contrast(
            method,
            prompts.rows,
            executor,
            clock.steps,
            self.settings.record,
            inputs.sample,
            border.unet.config.out_channels,
        )
        self.report("every row is full", inputs.sample.device)
        self.summary.rows = prompts.rows
        members = tuple(dict.fromkeys(name for subset in self._subsets for name in subset))
        self._fixed = {"dominant": None, "early": None, "refreshed": members}

    def adapt(self, adapters: LoadedAdapters, inputs: UNetInputs) -> None:
        self.call, self.fading = replace(self.call, adapters=adapters), None
        self.prepare(inputs)
        self.summary.adapters = adapters.names
        self.summary.weights = asdict(self.call.executor.store.report)

    @property
    def _subsets(self) -> list[tuple[str, ...]]:
        rows, styles = self._prompts.rows, self._method.style_adapters
        return [(() if row.adapter is None else (row.adapter,)) + styles for row in rows]

    def weigh(self, adapters: LoadedAdapters, execution: Execution, inputs: UNetInputs) -> None:
        call, prompts, subsets, method = self.call, self._prompts, self._subsets, self._method
        call.executor.prepare(
            adapters.scaled(dict.fromkeys(method.style_adapters, method.style_weight)),
            subsets,
            inputs.scale,
            execution,
            Texts(
                all_pairs(len(subsets)),
                lambda batch: prompts.at(batch, call.border.parts(), inputs.sample),
            ),
            inputs.sample.device,
        )

    def step(
        self, plain: Callable[..., Any], inputs: UNetInputs, whole: Callable[[], Any], turn: int
    ) -> Any:
        self.recorder.begin_step()
        self.fade(inputs)
        self._batch = inputs.batch
        images = self.images(inputs.batch)
        table = RowTable.product(len(self._prompts.rows), inputs.batch)
        self.recorder.note(
            len(table), 0, inputs.timestep, lambda: [dict(self._fixed) for _ in range(images)]
        )
        scale = input_scale(self.call.border.scheduler, inputs.timestep)
        step = self._contrast.step(plain, inputs, table, self.clock.step, images, scale)
        self.correction = step.correction
        self._note(step)
        return step.noise

    def _note(self, step: ContrastStep) -> None:
        names = [row.adapter or BASE for row in self._prompts.rows]
        losses, shares, areas = step.losses, step.shares, step.masks.mean((2, 3)).t()
        self.recorder.add(lambda: _found(names, losses, shares, areas))
        if self.settings.record:
            self.recorder.keep("maps", step.maps.cpu())
            self.recorder.keep("masks", step.masks[:, 0].cpu())

    def close(self) -> None:
        self.call.executor.tap.detach()
        super().close()


def _found(
    names: list[str], losses: Tensor | None, shares: Tensor, areas: Tensor
) -> list[dict[str, Any]]:
    """Fields of every image; losses (evaluations, images), shares and areas (images, rows)."""
    found = [
        {"weights": summed(names, share), "mask_area": summed(names, area), "loss": ()}
        for share, area in zip(shares.tolist(), areas.tolist(), strict=True)
    ]
    if losses is not None:
        for image, loss in zip(found, losses.t().tolist(), strict=True):
            image["loss"] = tuple(loss)
    return found


def check_contrast(
    whole: str | None, inputs: UNetInputs, parts: int, method: CLoRA, prompts: RowPrompts
) -> None:
    """Raise ``ValueError`` for a UNet call that CLoRA cannot run."""
    foreign = set(inputs.added or ()) - {"text_embeds", "time_ids"}
    if foreign:
        raise ValueError(f"CLoRA: expected no conditions beside the text; got {sorted(foreign)}")
    if method.latent_update and whole is not None:
        raise ValueError(f"CLoRA: expected a UNet call that can be taken apart; {whole}")
    if inputs.batch % parts:
        raise ValueError(
            f"CLoRA: expected {parts} guidance parts; the UNet was called with {inputs.batch} rows"
        )
    width, own = inputs.raw_text.shape[-1], prompts.positive.shape[-1]
    if width != own:
        raise ValueError(
            f"CLoRA.row_prompt_embeds: expected embeddings of the UNet's width {width}; got {own}"
        )


def input_scale(scheduler: Any, timestep: Any) -> float:
    """What ``scheduler.scale_model_input`` multiplies latents by at this step."""
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1), timestep))
