"""The front door: ``enable``, ``disable``, ``accelerate`` and ``summary``."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel

from .engine.engine import Engine
from .engine.settings import Settings
from .engine.summary import Summary
from .methods import Method, resolve
from .methods.fields import is_int
from .ops.backends import backends

__all__ = ["accelerate", "disable", "enable", "summary"]

WEIGHT_MODES = ("auto", "fold", "delta")
GRAPH_MODES = ("auto", "compile", "off")
BACKENDS = ("auto", "cpu", "cuda", "triton", "torch")

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

    Returns:
        ``pipe``.

    Raises:
        TypeError: ``pipe`` has no ``UNet2DConditionModel``.
        ValueError: A bad argument, or an active adapter that is not plain, finite LoRA.
        RuntimeError: The backend is not available here; the reason is that of ``backends()``.
    """
    settings = _settings(pipe, method, backend, weights, max_rows, record, graphs)
    _apply(pipe, settings)
    return pipe


def disable(pipe: Any) -> Any:
    """Make the pipeline what it was before ``enable``, bit for bit; a no-op if not enabled."""
    engine = _engine_of(pipe)
    if engine is not None:
        del _engines[pipe]
        _summaries[pipe] = engine.settled()
        engine.detach()
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


def _settings(
    pipe: Any,
    method: str | Method | None,
    backend: str,
    weights: str,
    max_rows: int | None,
    record: bool,
    graphs: str,
) -> Settings:
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, UNet2DConditionModel):
        found = "no unet" if unet is None else f"a unet of type {type(unet).__name__}"
        raise TypeError(
            "pipe: expected a diffusers pipeline whose unet is a UNet2DConditionModel; "
            f"got {type(pipe).__name__} with {found}"
        )
    if weights not in WEIGHT_MODES:
        raise ValueError(f"weights: expected one of {WEIGHT_MODES}; got {weights!r}")
    if max_rows is not None and not is_int(max_rows, 1):
        raise ValueError(f"max_rows: expected None or an int >= 1; got {max_rows!r}")
    if not isinstance(record, bool):
        raise ValueError(f"record: expected True or False; got {record!r}")
    if graphs not in GRAPH_MODES:
        raise ValueError(f"graphs: expected one of {GRAPH_MODES}; got {graphs!r}")
    _check_backend(backend)
    return Settings(resolve(method), backend, weights, max_rows, record, graphs)


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}; got {backend!r}")
    if backend != "auto":
        state = backends()[backend]
        if not state["available"]:
            raise RuntimeError(f"backend {backend!r} is not available: {state['reason']}")
