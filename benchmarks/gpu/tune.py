"""Measure block sizes of the Triton kernels on this GPU and write its table.

python -m cmlora_fast.benchmarks.gpu.tune --seconds 300

The table goes to triton_kernels/tables/<gpu>.json; CONTRIBUTING tells how rows are read.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from cmlora_fast import ops
from cmlora_fast.triton_kernels import tuning

from ..ops.workloads import row_table
from .kernels import LAYERS, PARTS
from .timing import copies_for, device_us
from .triton_cases import RANKS

ROWS = (PARTS, 5 * PARTS)
BLOCKS = {
    "lora_shrink": {"BLOCK_M": (16, 32, 64, 128), "BLOCK_K": (64, 128), "SPLIT_K": (1, 2, 4),
                    "num_stages": (3, 4, 5)},
    "lora_expand": {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128), "num_stages": (1,)},
}  # fmt: skip
LAUNCH = {"num_warps": (4, 8)}


def configs(op: str) -> Iterator[dict[str, int]]:
    space = {**BLOCKS[op], **LAUNCH}
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def calls(rows: int, tokens: int, d: int, rank: int, device: torch.device) -> list[Callable]:
    """lora_delta_ on a layer with one adapter per row, each call on memory of its own."""
    kind = {"device": device, "dtype": torch.bfloat16}
    a, b = torch.randn(rank, d, **kind), torch.randn(d, rank, **kind)
    tables = [t.to(device) for t in row_table([rank], [[0]] * rows)]

    def one() -> Callable:
        x = torch.randn(rows, tokens, d, **kind)
        y = torch.zeros_like(x)
        return lambda: ops.lora_delta_(y, x, a, b, *tables)

    return [one() for _ in range(copies_for(6 * rows * tokens * d, device))]


def best(op: str, run: list[Callable], measure: Callable, set_config: Callable) -> dict:
    """The fastest configuration that compiles; those that need too much are passed over."""
    times = {}
    for config in configs(op):
        set_config(config)
        try:
            times[json.dumps(config)] = measure(run)
        except Exception:  # out of shared memory or registers
            continue
    return json.loads(min(times, key=times.get))


def write(path: Path, gpu: str, rows: list[dict]) -> None:
    """Measured rows first, then those of the default table for everything else."""
    default = tuning.load_table(tuning.TABLES / "default.json")["rows"]
    ordered = [row for op in tuning.BLOCKS for row in [*rows, *default] if row["op"] == op]
    source = f"benchmarks.gpu.tune.py on {gpu}, {time.strftime('%Y-%m-%d')}"
    path.write_text(json.dumps({"gpu": gpu, "source": source, "rows": ordered}, indent=1) + "\n")
    tuning.load_table(path)


def rows_of(measured: dict[tuple, dict]) -> list[dict]:
    """(op, tokens, features, rank) -> config, as rows with limits, the smallest first."""
    rows = []
    for key in sorted(measured):
        op, tokens, features, rank = key
        limits = {"max_tokens": tokens, "max_features": features, "max_rank": rank}
        row = {"op": op, "dtypes": ["float16", "bfloat16"], **limits, "config": measured[key]}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="start no layer after")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this torch sees no GPU")
    device, stop = torch.device("cuda", 0), time.perf_counter() + args.seconds
    measured = {}
    with torch.inference_mode(), ops.force(backend="triton"):
        for op, rows, (tokens, d) in itertools.product(BLOCKS, ROWS, LAYERS.values()):
            for rank in RANKS[op]:
                if time.perf_counter() > stop:
                    print(f"left out: {op}, {rows} x {tokens} tokens of {d}, rank {rank}")
                    continue
                run = calls(rows, tokens, d, rank, device)
                with tuning.trial(op) as set_config:
                    found = best(op, run, lambda calls: device_us(calls, device), set_config)
                measured[op, rows * tokens, d, rank] = found
                print(op, rows * tokens, d, rank, found, flush=True)
    major, minor = torch.cuda.get_device_capability()
    path = tuning.TABLES / f"sm{major}{minor}.json"
    write(path, torch.cuda.get_device_name(), rows_of(measured))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
