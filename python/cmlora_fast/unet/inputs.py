"""The arguments of one UNet call, and what can be said of them before any row runs."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..ops.tensors import fingerprint
from .rows import Rows, take

__all__ = ["UNetInputs", "read_call", "text_key", "without_defaults"]

_SIGNATURE = inspect.signature(UNet2DConditionModel.forward)
# Binding by the signature takes a tenth of a millisecond, at every step.
_DEFAULTS = {name: p.default for name, p in [*_SIGNATURE.parameters.items()][1:]}


@dataclass(frozen=True)
class UNetInputs:
    """Arguments of ``UNet2DConditionModel.forward``, each (batch, ...) unless it broadcasts.

    ``text`` is what attention reads: the embeddings after the UNet's own projection of them; those
    of sample n are those of text ``text_rows[n]`` of the run. ``pooled`` (texts of the run, D),
    where prompts differ by row, replaces the call's.
    ``scale`` is the ``scale`` of ``cross_attention_kwargs``, ``attention_kwargs`` the rest.
    """

    sample: Tensor
    timestep: Tensor | float | int
    raw_text: Tensor
    text: Tensor | tuple | None
    scale: float
    attention_kwargs: dict[str, Any] | None
    class_labels: Tensor | None
    timestep_cond: Tensor | None
    added: dict[str, Any] | None
    down_residuals: tuple[Tensor, ...] | None
    mid_residual: Tensor | None
    return_dict: bool
    odd_size: bool
    opaque: str | None
    arguments: dict[str, Any]
    text_rows: tuple[int, ...] = ()
    pooled: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.sample.shape[0]

    def period(self) -> int | None:
        """Smallest n such that samples n apart are the same; None if that is the batch.

        The guidance parts of one image are, unless a callback or a mask has told them apart.
        """
        sample, batch = self.sample, self.batch
        for n in range(1, batch // 2 + 1):
            if batch % n == 0 and torch.equal(sample[n:], sample[:-n]):
                return n
        return None

    def of_rows(self, rows: Rows) -> UNetInputs:
        """What the time embedding is made of, per row."""
        read = ("sample", "timestep", "raw_text", "class_labels", "timestep_cond", "added")
        made = {name: rows.spread(getattr(self, name), self.batch) for name in read}
        if self.pooled is not None:
            made["added"] |= {"text_embeds": take(self.pooled, rows.text_rows, len(self.pooled))}
        return replace(self, **made)

    def time_embedding(self, unet: nn.Module) -> Tensor:
        """(batch, C), or (1, C) where it is the same for every sample."""
        added = unet.config.addition_embed_type is not None
        own = self.class_labels is not None or self.timestep_cond is not None or added
        if isinstance(self.timestep, Tensor) and self.timestep.numel() > 1:
            own = True
        sample = self.sample if own else self.sample[:1]
        emb = unet.get_time_embed(sample=sample, timestep=self.timestep)
        emb = unet.time_embedding(emb, self.timestep_cond)
        labels = unet.get_class_embed(sample=sample, class_labels=self.class_labels)
        if labels is not None:
            concat = unet.config.class_embeddings_concat
            emb = torch.cat([emb, labels], dim=-1) if concat else emb + labels
        aug = unet.get_aug_embed(
            emb=emb, encoder_hidden_states=self.raw_text, added_cond_kwargs=self.added
        )
        emb = emb if aug is None else emb + aug
        return emb if unet.time_embed_act is None else unet.time_embed_act(emb)


def read_call(unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> UNetInputs:
    """Bind a call of ``unet.forward``; anything we do not run ourselves is named in ``opaque``."""
    values = _bound(unet, args, kwargs)
    attention = dict(values["cross_attention_kwargs"] or {})
    scale = attention.pop("scale", 1.0)
    down, mid = values["down_block_additional_residuals"], values["mid_block_additional_residual"]
    sample = values["sample"]
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    factor = 2**unet.num_upsamplers
    return UNetInputs(
        sample=sample,
        timestep=values["timestep"],
        raw_text=values["encoder_hidden_states"],
        text=None,
        scale=float(scale),
        attention_kwargs=attention or None,
        class_labels=values["class_labels"],
        timestep_cond=values["timestep_cond"],
        added=values["added_cond_kwargs"],
        down_residuals=None if down is None else tuple(down),
        mid_residual=mid,
        return_dict=values["return_dict"],
        odd_size=any(side % factor for side in sample.shape[-2:]),
        opaque=_opaque(unet, values, attention),
        arguments=values,
    )


def _bound(unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument by its name; raises as the call itself would."""
    given = dict(zip(_DEFAULTS, args, strict=False))
    known = len(args) <= len(_DEFAULTS) and kwargs.keys() <= _DEFAULTS.keys() - given.keys()
    values = {**_DEFAULTS, **given, **kwargs}
    if known and all(value is not inspect.Parameter.empty for value in values.values()):
        return values
    bound = _SIGNATURE.bind(unet, *args, **kwargs)
    bound.apply_defaults()
    values = dict(bound.arguments)
    del values["self"]
    return values


def without_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a UNet call without those that say nothing."""
    return {name: value for name, value in arguments.items() if value is not _DEFAULTS[name]}


def _opaque(unet: nn.Module, values: dict[str, Any], attention: dict[str, Any]) -> str | None:
    """Why this call has to go through diffusers' own forward as a whole."""
    for name in (
        "attention_mask",
        "encoder_attention_mask",
        "down_intrablock_additional_residuals",
    ):
        if values[name] is not None:
            return f"the UNet was called with {name}"
    down, mid = values["down_block_additional_residuals"], values["mid_block_additional_residual"]
    if (down is None) != (mid is None):
        return "the UNet was called with only one kind of additional residual"
    if attention.get("gligen") is not None:
        return "the UNet was called with GLIGEN arguments"
    if unet.config.addition_embed_type == "image_hint":
        return "the UNet takes image hints"
    return None


def text_key(inputs: UNetInputs) -> tuple[Hashable, tuple[Tensor, ...]]:
    """Tells the text of a call from others, while the tensors live that come with it."""
    sources = tuple(_tensors((inputs.raw_text, inputs.added)))
    return (inputs.batch, fingerprint(*sources), _unversioned(sources)), sources


def _unversioned(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Checksums of tensors of ``torch.inference_mode``, whose versions tell of no write."""
    return tuple(
        zlib.crc32(t.flatten().view(torch.uint8).numpy())
        for t in tensors
        if t.is_inference() and t.is_cpu  # on a GPU it would wait for the device
    )


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    return []
