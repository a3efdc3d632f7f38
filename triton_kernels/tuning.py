"""Block sizes as data: ``tables/<gpu>.json``, written by ``benchmarks/tune.py``, and a default.

A table is a list of rows; the first that fits a call is taken. A row of ``{"op", "dtypes",
"max_tokens", "max_features", "max_rank", "config"}`` fits calls of the op with one of the dtypes
and sizes up to its limits; limits may be missing. The last row of an op has none, and every dtype.
Tokens are those of all rows of the batch, features those that the kernel goes over.
"""

import contextlib
import contextvars
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

TABLES = Path(__file__).parent / "tables"
DTYPES = ("float32", "float16", "bfloat16")
LIMITS = ("max_tokens", "max_features", "max_rank")
BLOCKS = {  # of each kernel
    "lora_shrink": ("BLOCK_M", "BLOCK_K", "SPLIT_K"),
    "lora_expand": ("BLOCK_M", "BLOCK_N"),
}
LAUNCH = ("num_warps", "num_stages")

_tried = contextvars.ContextVar("cmlora_fast_triton_config", default=None)  # op and config


def config_of(op: str, x: Tensor, features: int, rank: int) -> dict[str, int]:
    """Block sizes, warps and stages for a call on x (rows, tokens, ...)."""
    tried = _tried.get()
    if tried is not None and tried[0] == op:
        return tried[1]
    gpu = gpu_name(x.get_device()) if x.is_cuda else "default"
    return _find(gpu, op, x.dtype, x.shape[0] * x.shape[1], features, rank)["config"]


@contextlib.contextmanager
def trial(op: str) -> Iterator[Callable[[dict[str, int]], object]]:
    """Gives a function that sets what every call of op inside takes, whatever the tables say."""
    token = _tried.set(None)
    try:
        yield lambda config: _tried.set((op, config))
    finally:
        _tried.reset(token)


def gpu_name(device: int) -> str:
    """The table of a device: "sm90" for compute capability 9.0, else "default"."""
    major, minor = _capability(device)
    name = f"sm{major}{minor}"
    return name if (TABLES / f"{name}.json").exists() else "default"


def load_table(path: Path) -> dict:
    """A table, checked. Raises ValueError naming the file, the row and what is wrong."""
    table = json.loads(path.read_text())
    for index, row in enumerate(table["rows"]):
        wrong = _what_is_wrong(row)
        if wrong:
            raise ValueError(f"{path}: row {index}: {wrong}")
    for op in BLOCKS:
        rows = [row for row in table["rows"] if row["op"] == op]
        if not rows or set(rows[-1]["dtypes"]) != set(DTYPES) or any(k in rows[-1] for k in LIMITS):
            raise ValueError(f"{path}: expected a last row of {op} for all dtypes without limits")
    return table


def _what_is_wrong(row: dict) -> str:
    op = row.get("op")
    if op not in BLOCKS:
        return f"expected op of {', '.join(BLOCKS)}; got {op!r}"
    if not row.get("dtypes") or not set(row["dtypes"]) <= set(DTYPES):
        return f"expected dtypes of {', '.join(DTYPES)}; got {row.get('dtypes')!r}"
    unknown = set(row) - {"op", "dtypes", "config", *LIMITS}
    if unknown:
        return f"unknown keys {', '.join(sorted(unknown))}"
    if any(type(row[key]) is not int or row[key] < 1 for key in LIMITS if key in row):
        return "expected limits that are whole numbers above 0"
    config, names = row.get("config", {}), {*BLOCKS[op], *LAUNCH}
    if set(config) != names or any(type(n) is not int or n < 1 for n in config.values()):
        return f"expected config of {', '.join(sorted(names))}, whole numbers; got {config!r}"
    blocks = [config[name] for name in BLOCKS[op] if name.startswith("BLOCK")]
    if any(block < 16 or block & (block - 1) for block in blocks):
        return f"expected blocks that are powers of two from 16 on; got {config!r}"
    return ""


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _table(name: str) -> tuple[dict, ...]:
    return tuple(load_table(TABLES / f"{name}.json")["rows"])


@functools.lru_cache(maxsize=4096)
def _find(gpu: str, op: str, dtype: torch.dtype, tokens: int, features: int, rank: int) -> dict:
    name = str(dtype).removeprefix("torch.")
    sizes = {"max_tokens": tokens, "max_features": features, "max_rank": rank}
    return next(
        row
        for row in _table(gpu)
        if row["op"] == op
        and name in row["dtypes"]
        and all(sizes[key] <= row.get(key, sizes[key]) for key in LIMITS)
    )
