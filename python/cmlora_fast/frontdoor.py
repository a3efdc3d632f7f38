"""The front door: ``enable``, ``disable``, ``accelerate``, ``summary``, ``load_lora``."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel

from .adapters.load import load_lora, read_lora
from .adapters.lora_report import LoraReport
from .engine.engine import Engine
from .engine.settings import Settings
from .engine.summary import Summary
from .methods import Method

__all__ = [
    "LoraReport",
    "accelerate",
    "disable",
    "enable",
    "load_lora",
    "read_lora",
    "summary",
]

# Beside the pipelines, not in them: ``disable`` leaves a pipeline exactly as it was, and its last
# summary can still be asked for. An engine lives in the hooks that it set, an entry with its key.
_engines: weakref.WeakKeyDictionary[Any, weakref.ref[Engine]] = weakref.WeakKeyDictionary()
_summaries: weakref.WeakKeyDictionary[Any, Summary] = weakref.WeakKeyDictionary()


def enable(
    pipe: Any,
    method: str | Method | None = None,
    *,
    backend: str = "auto",
    weights: str = "auto",
    max_rows: int | None = None,
    record: bool = False,
    graphs: str = "auto",
    adapter_names: Sequence[Any] | None = None,
    weight_schedule: Mapping[str, Any] | None = None,
) -> Any:
    """Accelerate a diffusers pipeline in place; its calls stay as they are.

    Args:
        pipe: A pipeline whose denoiser is a ``UNet2DConditionModel``.
        method: None (the active adapters, lossless), a name ("merge", "switch", "composite",
            "cmlora") or an instance of a method. Calling again replaces the method.
        backend: What the ops run on: "auto", "cpu", "cuda", "triton" or "torch".
        weights: "fold" (one weight per adapter subset), "delta" (low-rank, beside the base) or
            "auto" (fold where memory allows).
        max_rows: Most samples per UNet batch; a step with more runs in chunks.
        record: Keep recorded tensors in the summary (``features``, ``profiles``; CLoRA: ``maps``,
            ``masks``).
        graphs: "auto": on a GPU, record steps as CUDA graphs and replay them, where nothing is in
            the way (the summary tells); "compile": on any device, ``torch.compile`` them first;
            "off": neither.
        adapter_names: An entry per image of the call, in the order of the pipeline's latents
            (prompts, then ``num_images_per_prompt``): a list of active adapters, one name, or
            "__base__" for none. Each image is composed of its own, at their ``set_adapters``
            weights. None: of all active ones. Not with CLoRA. Names and number are checked at the
            call.
        weight_schedule: Adapter -> what multiplies its weight in the UNet at each step:
            "factor@position,..." ("0@0,1@0.5"), linear between the points and constant outside,
            or a function (fraction of the run -> factor). Step i of T is at i/T; positions are
            fractions, or numbers of steps from 0 if there are several and all are whole and above
            1. An adapter whose factor is 0 keeps its place. Text encoders are not scheduled.

    Returns:
        ``pipe``.

    Raises:
        TypeError: ``pipe`` has no ``UNet2DConditionModel``.
        ValueError: A bad argument, or an active adapter that is not plain, finite LoRA.
        RuntimeError: The backend is not available here; the reason is that of ``backends()``.
    """
    _check_pipe(pipe)
    names, strengths = adapter_names, weight_schedule
    given = method, backend, weights, max_rows, record, graphs, names, strengths
    _apply(pipe, Settings(*given))
    return pipe


def disable(pipe: Any) -> Any:
    """Make the pipeline what it was before ``enable``, bit for bit; a no-op if not enabled."""
    engine = _engine_of(pipe)
    if engine is not None:
        _summaries[pipe] = engine.settled()
        engine.detach()
        _engines.pop(pipe, None)  # last: whoever interrupts this may disable again
    return pipe


@contextmanager
def accelerate(pipe: Any, method: str | Method | None = None, **options: Any) -> Iterator[Any]:
    """``enable`` for the length of a block; what was enabled outside is enabled again after it."""
    outer = _engine_of(pipe)
    before = None if outer is None else outer.settings
    enable(pipe, method, **options)
    try:
        yield pipe
    finally:
        if before is None:
            disable(pipe)
        elif (engine := _engine_of(pipe)) is not None:
            engine.settings = before  # unchecked: it was sound, and leaving a block must not fail
        else:
            _apply(pipe, before)


def summary(pipe: Any) -> Summary:
    """What the pipeline's last call ran; empty before any, kept after ``disable``."""
    engine = _engine_of(pipe)
    return _summaries.get(pipe, Summary()) if engine is None else engine.settled()


def _engine_of(pipe: Any) -> Engine | None:
    try:
        reference = _engines.get(pipe)
    except TypeError as error:  # a number, a text, None: nothing that could be referred to
        got = type(pipe).__name__
        raise TypeError(f"pipe: expected a diffusers pipeline; got {got}") from error
    return None if reference is None else reference()


def _apply(pipe: Any, settings: Settings) -> None:
    engine = _engine_of(pipe)
    if engine is None:
        engine = Engine(pipe, settings, _summaries.get(pipe, Summary()))
        engine.attach()
        _engines[pipe] = weakref.ref(engine)
    else:
        engine.check(settings)
        engine.settings = settings


def _check_pipe(pipe: Any) -> None:
    unet = getattr(pipe, "unet", None)
    unet = getattr(unet, "_orig_mod", unet)  # of torch.compile's wrapper
    if not isinstance(unet, UNet2DConditionModel):
        found = "no unet" if unet is None else f"a unet of type {type(unet).__name__}"
        raise TypeError(
            "pipe: expected a diffusers pipeline whose unet is a UNet2DConditionModel; "
            f"got {type(pipe).__name__} with {found}"
        )
