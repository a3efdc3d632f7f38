"""Measure block sizes of the Triton kernels on this GPU and write its table.

python -m cmlora_fast.benchmarks.gpu.tune --seconds 300

The table goes to triton_kernels/tables/<gpu>.json; CONTRIBUTING tells how rows are read.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from cmlora_fast import ops
from cmlora_fast.triton_kernels import tuning

from ..ops.workloads import row_table
from .kernels import LAYERS, PARTS
from .timing import copies_for, device_us

RANKS = (16, 32, 64)
ROWS = 5 * PARTS
BLOCKS = {
    "lora_delta_": {"BLOCK_M": (32, 64, 128), "BLOCK_N": (64, 128), "BLOCK_K": (32, 64)},
    "lora_linear": {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128, 256), "BLOCK_K": (32, 64),
                    "GROUP_M": (8,)},
}  # fmt: skip
LAUNCH = {"num_warps": (4, 8), "num_stages": (2, 3, 4)}


def configs(op: str) -> Iterator[dict[str, int]]:
    space = {**BLOCKS[op], **LAUNCH}
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


def calls(op: str, tokens: int, d: int, rank: int, device: torch.device) -> list[Callable]:
    """The op on a layer with one adapter per row, each call on memory of its own."""
    kind = {"device": device, "dtype": torch.bfloat16}
    a, b, w = (torch.randn(n, m, **kind) for n, m in ((rank, d), (d, rank), (d, d)))
    tables = [t.to(device) for t in row_table([rank], [[0]] * ROWS)]

    def one() -> Callable:
        x = torch.randn(ROWS, tokens, d, **kind)
        y = torch.zeros_like(x)
        if op == "lora_linear":
            return lambda: ops.lora_linear(x, w, None, a, b, *tables)
        return lambda: ops.lora_delta_(y, x, a, b, *tables)

    return [one() for _ in range(copies_for(6 * ROWS * tokens * d, device))]


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


def rows_of(measured: dict[tuple, dict], first: Collection[tuple] = ()) -> list[dict]:
    """(op, tokens, features, rank) -> config, as rows with limits, the smallest first.

    ``first``: those that beat the kernel in CUDA C++.
    """
    rows = []
    for key in sorted(measured):
        op, tokens, features, rank = key
        limits = {"max_tokens": tokens, "max_features": features, "max_rank": rank}
        row = {"op": op, "dtypes": ["float16", "bfloat16"], **limits, "config": measured[key]}
        rows.append(row | ({"first": True} if key in first else {}))
    return rows


def beats_cuda(run: list[Callable], device: torch.device) -> bool:
    """Whether the calls, which run in Triton, take less time there than in CUDA C++."""
    ours = device_us(run, device)
    with ops.force(backend="cuda"):
        return ours < device_us(run, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="start no layer after")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this torch sees no GPU")
    device, stop = torch.device("cuda", 0), time.perf_counter() + args.seconds
    measured, first = {}, set()
    with torch.inference_mode(), ops.force(backend="triton"):
        for op, rank, (tokens, d) in itertools.product(BLOCKS, RANKS, LAYERS.values()):
            if time.perf_counter() > stop:
                print(f"left out: {op}, {tokens} tokens of {d}, rank {rank}")
                continue
            run = calls(op, tokens, d, rank, device)
            with tuning.trial() as set_config:
                found = best(op, run, lambda calls: device_us(calls, device), set_config)
                set_config(found)
                if op == "lora_linear" and beats_cuda(run, device):
                    first.add((op, tokens, d, rank))
            measured[op, tokens, d, rank] = found
            print(op, tokens, d, rank, found, flush=True)
    major, minor = torch.cuda.get_device_capability()
    path = tuning.TABLES / f"sm{major}{minor}.json"
    write(path, torch.cuda.get_device_name(), rows_of(measured, first))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
