"""Products of one input that run as one, where launches count: keys with queries, time shifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..adapters import LayerWeights, WideLayer
from ..hooks import is_heard
from ..ops.products import linear
from ..ops.tensors import is_dense
from .arranged import Arranged
from .rows import Rows

__all__ = ["Joins", "base_of"]

Names = tuple[str, ...]


class Joins:
    """Layers of one UNet that read the same, and what they run with during a run.

    ``hooked``: adapted layers that have a name; the others are their own base.
    """

    def __init__(self, unet: nn.Module, hooked: Mapping[nn.Module, str | None], arranged: Arranged):
        self._names, self._arranged = hooked, arranged
        self._attentions = {m: _reads_itself(m) for m in unet.modules() if type(m) is Attention}
        self._resnets = [m for m in unet.modules() if type(m) is ResnetBlock2D]
        self._weights: dict[Attention, LayerWeights | None] = {}
        self._spans: dict[ResnetBlock2D, tuple[int, int]] = {}
        self._shifted: tuple[nn.Module, ...] = ()
        self._biased: tuple[nn.Module, ...] = ()
        self._step: tuple[Tensor, Tensor, Tensor | None] | None = None

    @property
    def names(self) -> list[Names]:
        """Adapted layers that may share one product."""
        groups = [[self._names.get(layer) for layer in ls] for ls in self._attentions.values()]
        return [tuple(names) for names in groups if names and None not in names]

    def begin(
        self, weights: Mapping[str, LayerWeights], joined: Mapping[Names, LayerWeights]
    ) -> None:
        """A run begins with these weights, of single layers and of ``names``."""
        self._step = None
        self._weights = {}
        for module, layers in self._attentions.items():
            names = tuple(self._names.get(layer) for layer in layers)
            if names in joined:
                self._weights[module] = joined[names]
            elif layers and not any(name in weights for name in names):
                self._weights[module] = None  # the bases as they are
                self._arranged.joined(tuple(map(base_of, layers)))
        self._begin_shifts(weights)

    def _begin_shifts(self, weights: Mapping[str, LayerWeights]) -> None:
        self._spans, at, layers, convolutions = {}, 0, [], []
        for resnet in self._resnets:
            layer, first = resnet.time_emb_proj, base_of(resnet.conv1)
            adapted = self._names.get(layer) in weights
            plain = type(base_of(layer)) is nn.Linear and getattr(first, "bias", None) is not None
            plain = plain and is_dense(base_of(layer).weight) and is_dense(first.bias)
            if layer is None or adapted or not plain or base_of(layer).bias is None:
                continue
            layers.append(base_of(layer))
            convolutions.append(first)
            self._spans[resnet] = (at, at + layers[-1].out_features)
            at = self._spans[resnet][1]
        self._shifted, self._biased = tuple(layers), tuple(convolutions)
        if layers:
            self._shift_weights()
            self._arranged.joined(self._biased, "bias")

    def _shift_weights(self) -> tuple[Tensor, Tensor]:
        return tuple(self._arranged.joined(self._shifted, name) for name in ("weight", "bias"))

    def room(self, module: Attention) -> int:
        """Columns that ``product`` wants behind its input's own; see ``WideLayer``."""
        weights = self._weights.get(module)
        wide = isinstance(weights, WideLayer) and not any(map(is_heard, self._attentions[module]))
        return weights.room if wide else 0

    def product(self, module: Attention, x: Tensor, rows: Rows) -> Sequence[Tensor] | None:
        """Queries, keys and values of ``x`` (rows, tokens, K); None where each runs by itself."""
        if module not in self._weights or any(map(is_heard, self._attentions[module])):
            return None
        weights = self._weights[module]
        if weights is not None:
            return weights(x, rows.of_samples(len(x))).chunk(3, dim=-1)
        bases = tuple(map(base_of, self._attentions[module]))
        return linear(x, self._arranged.joined(bases), None).chunk(3, dim=-1)

    def forget(self) -> None:
        """The embedding of a step is over."""
        self._step = None

    def shift(self, resnet: ResnetBlock2D, embedding: Tensor, biased: bool) -> Tensor | None:
        """What the time adds to the resnet's channels (rows or 1, C), with its first convolution's
        bias if ``biased``; None where its projection runs by itself.
        """
        span = self._spans.get(resnet)
        if span is None or is_heard(resnet.time_emb_proj):
            return None
        if self._step is None or self._step[0] is not embedding:
            shifts = linear(resnet.nonlinearity(embedding), *self._shift_weights())
            self._step = embedding, shifts, None
        embedding, shifts, with_bias = self._step
        if biased and with_bias is None:
            with_bias = shifts + self._arranged.joined(self._biased, "bias")
            self._step = embedding, shifts, with_bias
        return (with_bias if biased else shifts)[:, slice(*span)]


def base_of(layer: Any) -> Any:
    """What PEFT wraps, or the layer."""
    return getattr(layer, "base_layer", layer)


def _reads_itself(module: Attention) -> tuple[nn.Module, ...]:
    """Layers of queries, keys and values that may be one: of self-attention, without biases."""
    layers = (module.to_q, module.to_k, module.to_v)
    if module.is_cross_attention or any(layer is None for layer in layers):
        return ()
    bases = [base_of(layer) for layer in layers]
    plain = all(type(base) is nn.Linear and base.bias is None for base in bases)
    plain = plain and all(is_dense(base.weight) for base in bases)
    return layers if plain and len({base.weight.shape for base in bases}) == 1 else ()
