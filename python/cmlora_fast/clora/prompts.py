"""The prompts of CLoRA's rows, each encoded under the adapters of its row."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters.text import TextAdapters
from ..methods import CLoRA, Row
from .tokens import build_rows, warn_of_positions

__all__ = ["RowPrompts", "encode_rows"]

_SECOND_PROMPTS = ("prompt_2", "negative_prompt_2")
_EMBEDS = tuple(
    f"{sign}{pooled}prompt_embeds" for sign in ("", "negative_") for pooled in ("", "pooled_")
)


@dataclass(frozen=True)
class RowPrompts:
    """Rows with their embeddings: ``positive`` and ``negative`` (J, 77, D).

    ``pooled`` are the positive and negative ones (J, D) of SDXL's second text encoder; None: of
    the call.
    """

    rows: tuple[Row, ...]
    positive: Tensor
    negative: Tensor
    pooled: tuple[Tensor, Tensor] | None = None

    def at(self, batch: int, parts: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """(J * batch, 77, D), and pooled (J * batch, D), in the dtype and place of ``like``.

        Per row the negative prompt of every image, then the positive one; ``parts`` 1 (no guidance)
        leaves the negative ones out.
        """

        def spread(positive: Tensor, negative: Tensor) -> Tensor:
            halves = [negative, positive] if parts == 2 else [positive]
            images = [half[:, None].expand(-1, batch // parts, *half.shape[1:]) for half in halves]
            return torch.cat(images, dim=1).flatten(0, 1).to(like)

        pooled = None if self.pooled is None else spread(*self.pooled)
        return spread(self.positive, self.negative), pooled


def encode_rows(
    pipe: Any,
    method: CLoRA,
    encode: functools.partial,
    active: Sequence[str],
    texts: TextAdapters,
) -> RowPrompts:
    """Rows of ``method`` for this pipeline call, and their embeddings.

    Args:
        pipe: The pipeline.
        method: The method.
        encode: ``pipe.encode_prompt`` as it was, with the arguments of this call.
        active: Names of the active adapters.
        texts: The adapters of the pipeline's text encoders.

    Raises:
        ValueError: A row names an adapter that is not active, a subject is not in the prompt, or
            the call has several prompts.
    """
    call = _arguments(encode)
    rows = method.rows or _rows_of_concepts(pipe, method, call)
    for j, row in enumerate(rows):
        if row.adapter is not None and row.adapter not in active:
            raise ValueError(
                f"CLoRA.rows[{j}].adapter: expected an active adapter ({_listed(active)}); "
                f"got {row.adapter!r}"
            )
    for name in method.style_adapters:
        if name not in active:
            raise ValueError(
                f"CLoRA.style_adapters: expected active adapters ({_listed(active)}); got {name!r}"
            )
    positive, negative = method.row_prompt_embeds, method.row_negative_prompt_embeds
    pooled = None
    if positive is None or negative is None:
        if method.rows is not None and any(_tokenizers(pipe)):
            warn_of_positions(rows, _tokenizers(pipe))
        under = functools.partial(texts.only, pipe)
        made = [_encode(under, method, encode, call, row) for row in rows]
        encoded = [torch.cat(part) for part in zip(*made, strict=True)]
        positive = encoded[0] if positive is None else positive
        negative = encoded[1] if negative is None else negative
        pooled = tuple(encoded[2:]) or None
    return RowPrompts(tuple(rows), positive, negative.expand(len(rows), -1, -1), pooled)


def _tokenizers(pipe: Any) -> list[Any]:
    """SDXL has two; they agree on positions, or a concept is refused."""
    found = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
    return [tokenizer for tokenizer in found if tokenizer is not None]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none is"


def _arguments(encode: functools.partial) -> dict[str, Any]:
    bound = inspect.signature(encode.func).bind(*encode.args, **encode.keywords)
    bound.apply_defaults()
    return dict(bound.arguments)


def _rows_of_concepts(pipe: Any, method: CLoRA, call: dict[str, Any]) -> tuple[Row, ...]:
    prompts = [call["prompt"]] if isinstance(call["prompt"], str) else list(call["prompt"] or ())
    if len(set(prompts)) != 1:
        raise ValueError(
            "prompt: expected one prompt per call, as text, to find CLoRA.concepts in; "
            f"got {call['prompt']!r}"
        )
    negative = call.get("negative_prompt") or ""
    negative = negative if isinstance(negative, str) else negative[0]
    convert = getattr(pipe, "maybe_convert_prompt", None)
    return build_rows(prompts[0], method.concepts, _tokenizers(pipe), negative, convert)


def _encode(
    under: Callable[..., Any],
    method: CLoRA,
    encode: functools.partial,
    call: dict[str, Any],
    row: Row,
) -> tuple[Tensor, ...]:
    """Positive and negative embeddings, (1, 77, D) each, under the row's adapters.

    With SDXL also the pooled ones, (1, D) each.
    """
    own = dict.fromkeys((*_SECOND_PROMPTS, *_EMBEDS))
    own |= dict(
        prompt=row.prompt,
        # None rather than "": SDXL may have an embedding of its own for no negative prompt.
        negative_prompt=row.negative_prompt or None,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    own = {name: value for name, value in own.items() if name in call}
    adapters = list(method.style_adapters)
    if method.text_encoder_adapters and row.adapter is not None:
        adapters.insert(0, row.adapter)
    factors = dict.fromkeys(method.style_adapters, method.style_weight)
    with torch.no_grad(), under(adapters, factors):
        return tuple(encode.func(**{**call, **own}))
