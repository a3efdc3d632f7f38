"""Every kind of update as factors of one product: ΔW = scale · B A, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factors", "factors_of", "product_norm", "shaped", "tucker"]


@dataclass(frozen=True)
class Factors:
    """a (R, in, ...) or flat, b (out, R); ``rank``: what alpha is divided by, None: no alpha."""

    a: Tensor
    b: Tensor
    rank: int | None


def factors_of(parts: Mapping[str, Tensor]) -> Factors:
    """The factors of an update.

    Args:
        parts: Role -> tensor, as ``layouts.parse`` has them. Plain LoRA keeps its dtype; what is
            computed is so in float32.

    Raises:
        ValueError: Shapes that do not go together.
    """
    try:
        if "diff" in parts:
            return Factors(*_whole(parts["diff"].float()), None)
        if "hada_w1_a" in parts:
            return _loha({role: t.float() for role, t in parts.items()})
        if "lokr_w1" in parts or "lokr_w1_a" in parts:
            return _lokr({role: t.float() for role, t in parts.items()})
        return _lora(parts)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{role} {list(t.shape)}" for role, t in parts.items())
        raise ValueError(f"shapes that do not go together: {shapes}") from error


def shaped(a: Tensor, b: Tensor, weight: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Both as PEFT has them for a weight of this shape; None: they are not for it."""
    rank, inner = b.shape[1], weight[1:]
    own = a.shape[1] == weight[1] or a.ndim == 2
    if a.shape[0] != rank or a.numel() != rank * inner.numel() or b.shape[0] != weight[0]:
        return None
    return (a.reshape(rank, *inner), b.reshape(*b.shape, *(1 for _ in weight[2:]))) if own else None


def product_norm(a: Tensor, b: Tensor) -> float:
    """Frobenius norm of B A; neither the product nor anything as large is formed."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    square = ((b.mT @ b) * (a @ a.mT)).sum() if len(a) < min(a.shape[1], len(b)) else None
    return float((b @ a).norm() if square is None else square.clamp(min=0).sqrt())


def _lora(parts: Mapping[str, Tensor]) -> Factors:
    down, up = parts["down"], parts["up"].flatten(1)
    if "mid" not in parts:
        if down.shape[0] != up.shape[1]:
            raise RuntimeError("ranks differ")
        return Factors(down, up, down.shape[0])
    mid, inner = parts["mid"].float(), down.float().flatten(1)
    return Factors(torch.einsum("ij...,jr->ir...", mid, inner), up.float(), down.shape[0])


def _loha(parts: Mapping[str, Tensor]) -> Factors:
    """(B₁ A₁) ∘ (B₂ A₂): the row products of the A, the column products of the B."""
    b1, a1, b2, a2 = (parts[f"hada_w{i}_{side}"] for i in (1, 2) for side in "ab")
    rank = a1.shape[0]
    if "hada_t1" in parts:
        whole = tucker(parts["hada_t1"], b1, a1) * tucker(parts["hada_t2"], b2, a2)
        return Factors(*_whole(whole), rank)
    if len(a1) * len(a2) >= min(len(b1), a1.shape[1]):
        return Factors(*_whole((b1 @ a1) * (b2 @ a2)), rank)
    a = (a1[:, None] * a2[None]).flatten(0, 1)
    return Factors(a, (b1[:, :, None] * b2[:, None]).flatten(1), rank)


def _lokr(parts: Mapping[str, Tensor]) -> Factors:
    """W₁ ⊗ W₂ with W = P Q: (P₁ ⊗ P₂) (Q₁ ⊗ Q₂)."""
    q1, p1 = _pair(parts, 1)
    q2, p2 = _pair(parts, 2)
    ranks = [parts[f"lokr_w{i}_b"].shape[0] for i in (1, 2) if f"lokr_w{i}_b" in parts]
    q1 = q1.reshape(*q1.shape, *(1 for _ in q2.shape[2:]))
    a, b = torch.kron(q1.contiguous(), q2.contiguous()), torch.kron(p1, p2)
    if len(a) >= min(len(b), a[0].numel()):
        a, b = _whole((b @ a.flatten(1)).reshape(len(b), *a.shape[1:]))
    return Factors(a, b, ranks[0] if ranks else None)


def _pair(parts: Mapping[str, Tensor], number: int) -> tuple[Tensor, Tensor]:
    name = f"lokr_w{number}"
    if name in parts:
        return _whole(parts[name])
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    if number == 2 and "lokr_t2" in parts:
        return _whole(tucker(parts["lokr_t2"], left, right))
    return right, left


def tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """core (i, j, ...), left (i, out), right (j, in) -> (out, in, ...)"""
    return torch.einsum("ij...,ip,jr->pr...", core, left, right)


def _whole(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as a product with the smaller identity."""
    flat = weight.flatten(1)
    out, inner = flat.shape
    if out <= inner:
        return weight, torch.eye(out, dtype=weight.dtype)
    return torch.eye(inner, dtype=weight.dtype).reshape(inner, *weight.shape[1:]), flat
