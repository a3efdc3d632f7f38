"""Safetensors files written by hand, damaged in every way, and what is said of them."""

from __future__ import annotations

import json
import struct

DOWN, UP, ALPHA = "lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.alpha"
DATA = struct.pack("<9f", *range(1, 9), 2)


def entries() -> dict:
    """The header of one whole layer of rank 2."""
    return {
        DOWN: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        UP: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]},
        ALPHA: {"dtype": "F32", "shape": [], "data_offsets": [32, 36]},
    }


def packed(header: bytes | str | dict, data: bytes = DATA, length: int | None = None) -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed(key: str, **fields) -> bytes:
    header = entries()
    header[key] |= fields
    return packed(header)


def lacking(field: str) -> bytes:
    header = entries()
    del header[DOWN][field]
    return packed(header)


def with_metadata(metadata) -> bytes:
    return packed({"__metadata__": metadata, **entries()})


def with_config(config) -> bytes:
    text = config if isinstance(config, str) else json.dumps(config)
    return with_metadata({"lora_adapter_metadata": text})


def twice(key: str) -> bytes:
    return packed(json.dumps(entries())[:-1] + f', "{key}": {json.dumps(entries()[key])}}}')


WHOLE = packed(entries())
HEADER = "its safetensors header is damaged: "
BAD_SHAPE = f"{HEADER}'{DOWN}': expected a shape of natural numbers; got "
BAD_OFFSETS = f"{HEADER}'{DOWN}': expected data_offsets [begin, end]; got "
DAMAGED = {
    "empty file": (b"", "not a safetensors file (0 bytes)"),
    "five bytes": (WHOLE[:5], "not a safetensors file (5 bytes)"),
    "length alone": (WHOLE[:8], "not a safetensors file (8 bytes)"),
    "length zero": (packed(entries(), length=0), "not a safetensors file"),
    "length one": (packed(entries(), length=1), "not a safetensors file"),
    "length short": (packed(entries(), length=100), HEADER + "not JSON"),
    "length beyond the file": (packed(entries(), length=5000), "its header announces 5008"),
    "length of 64 bits": (packed(entries(), length=2**64 - 1), "truncated safetensors file"),
    "truncated header": (WHOLE[:100], "truncated safetensors file: 100 bytes"),
    "truncated data": (WHOLE[:-1], "truncated safetensors file"),
    "bytes behind": (WHOLE + b"12345", HEADER + "5 bytes follow its last tensor"),
    "not JSON": (packed("{" + "x" * 50), HEADER + "not JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), HEADER + "not JSON in UTF-8"),
    "a list": (packed("[1, 2]"), "not a safetensors file"),
    "number of 5,000 digits": (packed('{"x": ' + "9" * 5000 + "}"), HEADER + "not JSON"),
    "nested": (packed('{"x": ' + "[" * 100_000), HEADER + "nested too deeply"),
    "nested objects": (packed('{"x":' * 100_000), HEADER + "nested too deeply"),
    "key twice": (twice(UP), f"{HEADER}'{UP}' is there twice"),
    "field twice": (packed('{"x": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is there twice"),
    "entry a number": (packed({**entries(), "x": 3}), "'x': expected dtype, shape and data_offs"),
    "entry null": (packed({**entries(), "x": None}), "'x': expected dtype, shape and data_offs"),
    "no dtype": (lacking("dtype"), f"'{DOWN}': unknown dtype None"),
    "no shape": (lacking("shape"), BAD_SHAPE + "None"),
    "no offsets": (lacking("data_offsets"), BAD_OFFSETS + "None"),
    "unknown dtype": (changed(DOWN, dtype="F33"), f"'{DOWN}': unknown dtype 'F33'"),
    "dtype a list": (changed(DOWN, dtype=["F32"]), f"'{DOWN}': unknown dtype ['F32']"),
    "shape negative": (changed(DOWN, shape=[-2, -2]), BAD_SHAPE + "[-2, -2]"),
    "shape huge": (changed(DOWN, shape=[2**62, 2**62]), "does not take 16 bytes"),
    "shape beyond 64 bits": (changed(DOWN, shape=[2**70]), BAD_SHAPE),
    "shape a text": (changed(DOWN, shape="2x2"), BAD_SHAPE + "'2x2'"),
    "shape of floats": (changed(DOWN, shape=[2.0, 2]), BAD_SHAPE + "[2.0, 2]"),
    "shape of booleans": (changed(DOWN, shape=[True, 4]), BAD_SHAPE + "[True, 4]"),
    "shape of many": (changed(DOWN, shape=[1] * 1000), BAD_SHAPE),
    "offsets null": (changed(DOWN, data_offsets=None), BAD_OFFSETS + "None"),
    "offsets of nulls": (changed(DOWN, data_offsets=[0, None]), BAD_OFFSETS + "[0, None]"),
    "one offset": (changed(DOWN, data_offsets=[0]), BAD_OFFSETS + "[0]"),
    "offsets turned": (changed(DOWN, data_offsets=[16, 0]), BAD_OFFSETS + "[16, 0]"),
    "offsets negative": (changed(DOWN, data_offsets=[-16, 0]), BAD_OFFSETS + "[-16, 0]"),
    "offsets text": (changed(DOWN, data_offsets=["0", "16"]), BAD_OFFSETS),
    "another size": (changed(DOWN, shape=[2, 3]), "F32 [2, 3] does not take 16 bytes"),
    "another dtype": (changed(DOWN, dtype="F16"), "F16 [2, 2] does not take 16 bytes"),
    "overlap": (changed(UP, data_offsets=[12, 28]), f"'{UP}' overlaps the tensor before it"),
    "same place": (changed(UP, data_offsets=[0, 16]), "overlaps the tensor before it"),
    "gap": (changed(ALPHA, data_offsets=[40, 44]), f"a gap of 8 bytes before '{ALPHA}'"),
    "gap in front": (packed({ALPHA: entries()[ALPHA]}), f"a gap of 32 bytes before '{ALPHA}'"),
    "metadata a text": (
        with_metadata("made by me"),
        "__metadata__: expected names and texts; got ",
    ),
    "metadata a list": (with_metadata(["x"]), "__metadata__: expected names and texts; got ['x']"),
    "metadata of numbers": (with_metadata({"a": 1}), "__metadata__ 'a': expected text; got 1"),
    "half a character": (packed(json.dumps(entries()).replace("_x.lo", r"\ud800.lo")), "read: "),
    "config not JSON": (with_config("{"), "metadata: lora_adapter_metadata: expected an object"),
    "config nested": (with_config("[" * 100_000), "metadata: lora_adapter_metadata: expected an"),
    "config a text": (with_config('"x"'), "metadata: lora_adapter_metadata: expected an object"),
    "patterns a list": (with_config({"unet.alpha_pattern": [1]}), "alpha_pattern: expected names"),
    "pattern a text": (with_config({"unet.alpha_pattern": {"a.b": "x"}}), "a.b: expected a number"),
    "common a list": (with_config({"unet.lora_alpha": [1]}), "unet.lora_alpha: expected a number"),
    "alpha empty": (
        packed(entries() | {ALPHA: {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}})[:-4],
        f"{ALPHA}: expected a number; got F32 [0]",
    ),
    "alpha complex": (
        packed(entries() | {ALPHA: {"dtype": "C64", "shape": [], "data_offsets": [32, 40]}})
        + bytes(4),
        f"{ALPHA}: expected a number; got C64 []",
    ),
}
