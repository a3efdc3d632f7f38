"""Checksums of the numbers in tensors: versions do not tell of writes through ``.data``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.tensors import accumulator, is_dense

__all__ = ["Contents", "alike", "is_normed", "norm_bits"]

GROUP_BYTES = 16 << 20  # brought side by side at a time
PIECE_WORDS = 1 << 17  # 1 MiB, which a CPU's second cache holds with what is made of it
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Contents:
    """What stood in tensors when this was made: every bit of ``exact``, of ``normed`` the norms.

    It keeps the tensors, not their memory: those that move or grow are read where they are.
    """

    def __init__(self, exact: Sequence[Tensor], normed: Sequence[Tensor]):
        self._groups = [group for kind in alike(exact) for group in _grouped(kind)]
        self._normed = alike(t for t in normed if is_normed(t))
        self._mixers: dict[torch.device, Tensor] = {}
        self._sums = None if any(t.is_meta for t in exact) else self._read()

    @torch.no_grad()
    def same(self) -> bool:
        """Whether all is as it was: compared on the device, told by one number read."""
        if self._sums is None:
            return False
        try:
            pairs = zip(self._read(), self._sums, strict=True)
            return all(bool((now == before).all()) for now, before in pairs)
        except (RuntimeError, ValueError):  # they lie elsewhere by now, or are of another type
            return False

    @torch.no_grad()
    def _read(self) -> list[Tensor]:
        """One vector per device."""
        found: dict[torch.device, list[Tensor]] = {}
        for group in self._groups:
            found.setdefault(group[0].device, []).extend(self._checksums(_words(group)))
        sums = {place: [torch.stack(values)] for place, values in found.items()}
        for group in self._normed:
            sums.setdefault(group[0].device, []).append(norm_bits(group))
        return [torch.cat(values) for values in sums.values()]

    def _checksums(self, words: Tensor) -> list[Tensor]:
        """Sums of words times random ones, modulo 2**64; of upper halves twice, else what changes
        signs alone could be lost beyond the last bit."""
        place = words.device
        length = PIECE_WORDS if place.type == "cpu" else GROUP_BYTES // 8
        if place not in self._mixers:
            draw = torch.Generator().manual_seed(0)
            mixer = torch.randint(-(2**62), 2**62, (length,), generator=draw)
            self._mixers[place] = mixer.to(place)
        found = []
        for piece in words.split(length):
            mixed = piece >> 32
            mixed ^= piece
            mixer = self._mixers[place][: len(piece)]
            # CUDA has no dot product of integers.
            dot = place.type == "cpu"
            found.append(mixed.dot(mixer) if dot else mixed.mul_(mixer).sum())
        return found


@torch.no_grad()
def norm_bits(tensors: Sequence[Tensor]) -> Tensor:
    """Bits of each tensor's norm, which unlike its value compare where it is no number.

    The tensors are of one dtype and device.
    """
    norms = torch.stack(torch._foreach_norm(tensors, 2, accumulator(tensors[0].dtype)))
    return norms.view(INTEGERS[norms.element_size()]).long()


def is_normed(tensor: Tensor) -> bool:
    """Whether ``norm_bits`` takes it: a plain matrix of floats, with its numbers at hand."""
    return is_dense(tensor) and tensor.dtype in FLOATS


def alike(tensors) -> list[list[Tensor]]:
    """The tensors by device and dtype, each once."""
    found: dict[tuple, dict[int, Tensor]] = {}
    for tensor in tensors:
        found.setdefault((tensor.device, tensor.dtype), {})[id(tensor)] = tensor
    return [list(kind.values()) for kind in found.values()]


def _grouped(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups, room = [], 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(tensor)
        room -= size
    return groups


def _words(tensors: Sequence[Tensor]) -> Tensor:
    """The bits of all tensors, side by side, eight bytes a word where they fill words."""
    flat = torch._utils._flatten_dense_tensors(tensors)
    if flat.numel() * flat.element_size() % 8 == 0:
        return flat.view(torch.int64)
    return flat.view(INTEGERS[flat.element_size()]).long()
