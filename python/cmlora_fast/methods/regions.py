"""Masks that a user gives: which adapter draws which pixels."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Region", "Regions", "check_masks"]

ALLOWED = (
    "a picture: a PIL image, or an array or tensor (H, W) of bools, of ints 0..255 or 0..1, or of "
    "floats 0..1"
)


@dataclass(frozen=True)
class Region:
    """The pixels of one adapter, weights in 0..1. ``values``: float32, row by row."""

    height: int
    width: int
    values: bytes = field(repr=False)

    @classmethod
    def of(cls, picture: Any) -> Region:
        """A picture as a region.

        Raises:
            ValueError: Not a picture of weights, or no pixel above 0.
        """
        if isinstance(picture, cls):
            return picture
        return cls(*(_image if hasattr(picture, "convert") else _array)(picture))


class Regions(Mapping):
    """Adapter -> region; immutable, and equal where the pixels are."""

    def __init__(self, pictures: Mapping[str, Any]):
        self._regions = {name: Region.of(picture) for name, picture in pictures.items()}

    def __getitem__(self, name: str) -> Region:
        return self._regions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __hash__(self) -> int:
        return hash(frozenset(self._regions.items()))

    def __repr__(self) -> str:
        return repr(self._regions)


def check_masks(owner: Any) -> None:
    """The field ``masks`` of a frozen dataclass: None, or adapter -> picture, kept as ``Regions``.

    Raises:
        ValueError: Anything else.
    """
    value, head = owner.masks, f"{type(owner).__name__}.masks"
    if value is None:
        return
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{head}: expected None or {{adapter: picture}}; got {value!r}")
    for name in value:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{head}: expected names of adapters as keys; got {name!r}")
        try:
            Region.of(value[name])
        except ValueError as error:
            raise ValueError(f"{head}[{name!r}]: {error}") from None
    object.__setattr__(owner, "masks", Regions(value))


def _image(picture: Any) -> tuple[int, int, bytes]:
    """Height, width and weights of a PIL image; its modes I and F hold numbers."""
    mode, code = {"I": ("I", "i"), "F": ("F", "f")}.get(picture.mode[0], ("L", "B"))
    pixels = array(code, picture.convert(mode).tobytes())
    return picture.height, picture.width, _weights(pixels, code != "f")


def _array(picture: Any) -> tuple[int, int, bytes]:
    """The same of an array or tensor, told by what it can do."""
    pixels = picture
    if hasattr(picture, "detach"):
        pixels = picture.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
    shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", None)
    kind = getattr(dtype, "kind", None)
    if kind and len(shape) == 3 and 1 in (shape[0], shape[2]):
        pixels = pixels[0] if shape[0] == 1 else pixels[:, :, 0]
    if kind not in tuple("buif") or pixels.ndim != 2 or not pixels.size:
        form = f" {tuple(shape)} {dtype}" if shape else ""
        raise ValueError(f"expected {ALLOWED}; got {type(picture).__name__}{form}")
    return *pixels.shape, _weights(array("f", pixels.astype("float32").tobytes()), kind in "ui")


def _weights(pixels: array, whole: bool) -> bytes:
    """Weights in 0..1 as float32; whole numbers go to 255 where one is above 1."""
    least, most = min(pixels), max(pixels)
    if whole and most > 1 and 0 <= least and most <= 255:
        pixels, most = [pixel / 255 for pixel in pixels], 1
    if not (0 <= least and most <= 1) or any(pixel != pixel for pixel in pixels):
        raise ValueError(f"expected {ALLOWED}; got other values")
    if not any(pixels):
        raise ValueError("expected a pixel above 0; got none")
    return array("f", pixels).tobytes()
