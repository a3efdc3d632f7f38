"""What an adapter of each kind is in one layer: its tensors, and what it makes of the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import tucker
from .kinds import DORA, WITH_BIAS

__all__ = ["AnyAdapter", "FactoredAdapter", "LayerAdapter", "composed"]


@dataclass(frozen=True)
class LayerAdapter:
    """LoRA in one layer: ``a`` [R, K...], ``b`` [N, R...], weight * alpha / rank.

    ``contents`` changes whenever the numbers in its tensors do. ``magnitude`` (N numbers) makes it
    DoRA, ``bias`` [N] is that of B.
    """

    a: Tensor
    b: Tensor
    scaling: float
    contents: tuple[float, ...] = ()
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def kind(self) -> str | None:
        """What it is, other than a product of ``a`` and ``b`` that may run beside its base."""
        if self.magnitude is not None:
            return DORA
        return None if self.bias is None else WITH_BIAS

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it is made of, by PEFT's names."""
        found = {"lora_A.weight": self.a, "lora_B.weight": self.b}
        if self.magnitude is not None:
            found["lora_magnitude_vector.weight"] = self.magnitude
        if self.bias is not None:
            found["lora_B.bias"] = self.bias
        return found

    def delta(self, like: Tensor) -> Tensor:
        """ΔW before scaling, (N, ΣK) float32 where ``like`` is."""
        a, b = (t.detach().flatten(1).to(like.device, torch.float32) for t in (self.a, self.b))
        return b @ a


@dataclass(frozen=True)
class FactoredAdapter:
    """LoHa or LoKr in one layer: a product of ``factors``, by PEFT's names, and a scaling.

    ``contents`` as in ``LayerAdapter``.
    """

    kind: str
    factors: Mapping[str, Tensor]
    scaling: float
    contents: tuple[float, ...] = ()
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All that it is made of, by PEFT's names."""
        return self.factors

    def delta(self, like: Tensor) -> Tensor:
        """ΔW before scaling, (N, ΣK) float32 where ``like`` is."""
        factors = {
            name: factor.detach().to(like.device, torch.float32)
            for name, factor in self.factors.items()
        }
        made = _hadamard(factors) if "hada_w1_a" in factors else _kronecker(factors)
        return made.reshape(len(like), -1)


AnyAdapter = LayerAdapter | FactoredAdapter


def _hadamard(factors: Mapping[str, Tensor]) -> Tensor:
    return _half(factors, "hada_w1", "hada_t1") * _half(factors, "hada_w2", "hada_t2")


def _kronecker(factors: Mapping[str, Tensor]) -> Tensor:
    left, right = (_half(factors, name, "lokr_t2") for name in ("lokr_w1", "lokr_w2"))
    return torch.kron(left.view(*left.shape, *[1] * (right.dim() - 2)), right.contiguous())


def _half(factors: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """A whole matrix, a product of two, or a Tucker product around a core [R, R, kh, kw]."""
    if name in factors:
        return factors[name]
    a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    if core in factors and name != "lokr_w1":
        return tucker(factors[core], a, b)
    return a @ b


@torch.no_grad()
def composed(
    weight: Tensor, adapters: Sequence[AnyAdapter], scale: float
) -> tuple[Tensor, Tensor | None]:
    """A layer's weight with adapters one after the other, as PEFT adds their outputs.

    DoRA takes what those before it have made by the magnitudes it has over the norms of
    W + scale B A, where W is the pristine ``weight``.

    Returns:
        The weight, in the dtype and shape of ``weight`` and rounded once, and what comes to the
        base's bias, [N] float32; None for nothing.
    """
    pristine = weight.detach().flatten(1).float()
    made, shift = pristine, None
    for adapter in adapters:
        delta = adapter.delta(pristine).mul_(adapter.scaling * scale)
        made = made + delta
        if adapter.bias is not None:
            bias = adapter.bias.detach().to(made.device, torch.float32)
            bias = bias * (adapter.scaling * scale)
            shift = bias if shift is None else shift + bias
        if adapter.magnitude is not None:
            magnitude = adapter.magnitude.detach().to(made.device, torch.float32).flatten()
            ratio = magnitude / delta.add_(pristine).norm(dim=1)
            made = made * ratio[:, None]
            shift = None if shift is None else shift * ratio
    return made.to(weight.dtype).view(weight.shape), shift
