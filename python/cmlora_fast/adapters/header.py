"""The header of a safetensors file, checked to the last byte: plain words for every damage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

__all__ = ["Header", "opened", "read_header"]

# Of an element; the last three are packed.
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
BITS |= {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
LENGTH = 8  # bytes, little-endian, of the length of the JSON text
LARGEST = 100_000_000  # bytes of that text; safetensors reads no longer one
END = 2**63  # of numbers; no file is larger
DIMENSIONS = 64  # torch has no tensor of more
DAMAGED = "its safetensors header is damaged"


@dataclass(frozen=True)
class Header:
    """Key -> shape and dtype, and the metadata."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a whole file.

    Raises:
        ValueError: What is wrong; whoever knows why it was opened adds its name.
    """
    try:
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "no such file"
            raise ValueError(f"{what}; expected a LoRA in a .safetensors file")
        size = path.stat().st_size
        with open(path, "rb") as file:
            text = _text(file, size)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    entries = _entries(text)
    metadata = entries.pop("__metadata__", None) or {}
    _check_metadata(metadata)
    expected = LENGTH + len(text) + _data_bytes(entries)
    if size < expected:
        raise ValueError(_truncated(size, expected))
    if size > expected:
        raise ValueError(f"{DAMAGED}: {size - expected} bytes follow its last tensor")
    shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
    return Header(shapes, {key: entry["dtype"] for key, entry in entries.items()}, metadata)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """``safe_open``; raises ValueError for a tensor that safetensors or torch cannot read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"cannot be read: {error}") from error


def _text(file: BinaryIO, size: int) -> bytes:
    length = int.from_bytes(file.read(LENGTH), "little")
    if file.read(1) != b"{" or length < 2:
        raise ValueError(f"not a safetensors file ({size} bytes); expected a LoRA in one")
    if LENGTH + length > size:
        raise ValueError(_truncated(size, LENGTH + length))
    if length > LARGEST:
        raise ValueError(f"{DAMAGED}: {length} bytes; safetensors reads {LARGEST} at most")
    return b"{" + file.read(length - 1)


def _truncated(size: int, expected: int) -> str:
    return f"truncated safetensors file: {size} bytes, its header announces {expected}"


def _entries(text: bytes) -> dict[str, Any]:
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except KeyError as error:
        raise ValueError(f"{DAMAGED}: {error} is there twice") from None
    except RecursionError:
        raise ValueError(f"{DAMAGED}: nested too deeply") from None
    except ValueError:
        raise ValueError(f"{DAMAGED}: not JSON in UTF-8") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise KeyError(max(counts, key=lambda key: counts[key]))
    return found


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{DAMAGED}: __metadata__: expected names and texts; got {short(metadata)}"
        )
    for name, text in metadata.items():
        if not isinstance(text, str):
            raise ValueError(f"{DAMAGED}: __metadata__ {name!r}: expected text; got {short(text)}")


def _data_bytes(entries: dict[str, Any]) -> int:
    """How many bytes the tensors take: each begins where the one before it ends."""
    end = 0
    for begin, stop, key in sorted((*_extent(key, entry), key) for key, entry in entries.items()):
        if begin < end:
            raise ValueError(f"{DAMAGED}: {key!r} overlaps the tensor before it")
        if begin > end:
            raise ValueError(f"{DAMAGED}: a gap of {begin - end} bytes before {key!r}")
        end = stop
    return end


def _extent(key: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, counted from the end of the header."""
    place = f"{DAMAGED}: {key!r}"
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected dtype, shape and data_offsets; got {short(entry)}")
    dtype, shape, offsets = map(entry.get, ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{place}: unknown dtype {short(dtype)}")
    if not _naturals(shape) or len(shape) > DIMENSIONS:
        raise ValueError(f"{place}: expected a shape of natural numbers; got {short(shape)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{place}: expected data_offsets [begin, end]; got {short(offsets)}")
    size = offsets[1] - offsets[0]
    if prod(shape) * BITS[dtype] != 8 * size:
        raise ValueError(f"{place}: {dtype} {short(shape)} does not take {size} bytes")
    return offsets[0], offsets[1]


def _naturals(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < END for n in numbers)
