"""Block sizes as data: ``tables/<gpu>.json``, written by ``benchmarks/tune.py``, and a default.

A table is a list of rows; the first that fits a call is taken. A row of ``{"op", "dtypes",
"max_tokens", "max_features", "max_rank", "config"}`` fits calls of the op with one of the dtypes
and sizes up to its limits; limits may be missing. The last row of an op has none, and every dtype.
``"first": true`` in a row says that on this GPU the kernel beats the one in CUDA C++.
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
BLOCKS = {"lora_delta_": ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
BLOCKS["lora_linear"] = (*BLOCKS["lora_delta_"], "GROUP_M")
LAUNCH = ("num_warps", "num_stages")

_tried = contextvars.ContextVar("cmlora_fast_triton_config", default=None)


def config_of(op: str, x: Tensor, N: int, rank: int) -> dict[str, int]:
    """Block sizes, warps and stages for a call on x (rows, tokens, K) with N output features."""
    tried = _tried.get()
    return _row(op, x, N, rank)["config"] if tried is None else tried


def comes_first(op: str, x: Tensor, N: int, rank: int) -> bool:
    """Whether the table prefers the op's Triton kernel for a call to that in CUDA C++."""
    return _row(op, x, N, rank).get("first", False)


def _row(op: str, x: Tensor, N: int, rank: int) -> dict:
    gpu = gpu_name(x.get_device()) if x.is_cuda else "default"
    return _find(gpu, op, x.dtype, x.shape[1], max(x.shape[2], N), rank)


@contextlib.contextmanager
def trial() -> Iterator[Callable[[dict[str, int]], object]]:
    """Gives a function that sets what every call inside takes, whatever the tables say."""
    token = _tried.set(None)
    try:
        yield _tried.set
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
    if type(row.get("first", False)) is not bool:
        return f"expected first true or false; got {row['first']!r}"
    unknown = set(row) - {"op", "dtypes", "config", "first", *LIMITS}
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
