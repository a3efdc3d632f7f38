"""Every op against its torch twin: time in alternating rounds, and error against float64.

python -m cmlora_fast.benchmarks.kernels --op lora_delta_ --dtype bfloat16
"""

import argparse
import json
import os
import platform
from dataclasses import asdict

import torch
from cmlora_fast import ops
from cmlora_fast.ops import backends, reference

from .timing import paired_ms
from .workloads import LAYERS, RANKS, row_table


def lora_delta_cases(dtype):
    for name, (tokens, K, N) in LAYERS.items():
        for rank in RANKS:
            yield f"{name}, rank {rank}", lora_inputs(1, tokens, K, N, [rank], dtype)
    yield "SD 1.5 32x32, 5 of rank 16", lora_inputs(5, 1024, 640, 640, [16] * 5, dtype)
    yield "text keys, 16 of rank 8", lora_inputs(16, 77, 768, 320, [8] * 16, dtype)


def lora_inputs(rows, tokens, K, N, ranks, dtype):
    y, x = torch.randn(rows, tokens, N), torch.randn(rows, tokens, K)
    a, b = torch.randn(sum(ranks), K) / K**0.5, torch.randn(N, sum(ranks))
    table = row_table(ranks, [[row % len(ranks)] for row in range(rows)])
    return *(tensor.to(dtype) for tensor in (y, x, a, b)), *table


def lora_fold_cases(dtype):
    for K, N in ((320, 320), (640, 640), (1280, 1280), (1280, 10240)):
        w = torch.randn(N, K).to(dtype)
        for ranks, rows in (
            ([16], [[0]]),
            ([16] * 5, [[0, 1, 2, 3, 4]]),
            ([64] * 3, [[0], [1], [2]]),
        ):
            a, b = torch.randn(sum(ranks), K) / K**0.5, torch.randn(N, sum(ranks))
            name = f"{N}x{K}, {len(rows)} rows of {len(rows[0])} x rank {ranks[0]}"
            yield name, (w, a.to(dtype), b.to(dtype), *row_table(ranks, rows))


def radial_amplitude_cases(dtype):
    for batch, height, width in (
        (1, 32, 32),
        (1, 64, 64),
        (1, 128, 128),
        (4, 96, 64),
        (1, 104, 88),
    ):
        yield f"{batch} x 4 x {height} x {width}", (torch.randn(batch, 4, height, width).to(dtype),)


def cache_refresh_cases(dtype):
    rows = torch.tensor([1, 4], dtype=torch.int32)
    for channels, width, size in ((640, 960, 64), (640, 960, 32)):
        buffer = torch.zeros(10, width, size, size).to(dtype)
        fresh = torch.randn(2, channels, size, size).to(dtype)
        yield f"2 rows of {channels} x {size} x {size}", (buffer[:, :channels], fresh, rows)


def combine_cases(dtype):
    for rows, images, size in ((5, 1, 64), (5, 4, 64), (3, 1, 128)):
        noise = torch.randn(2, rows, images, 4, size, size).to(dtype)
        out = torch.empty(images, 4, size, size).to(dtype)
        yield (
            f"{rows} rows, {images} x 4 x {size} x {size}",
            (out, noise, torch.rand(rows, images), 7.5),
        )


def attention_cases(dtype):
    for rows, queries, keys, heads, D in (
        (10, 1024, 1024, 8, 20),
        (2, 1024, 1024, 8, 20),
        (10, 1024, 77, 8, 20),
        (2, 4096, 4096, 8, 40),
        (2, 1024, 1024, 8, 80),
        (10, 64, 64, 8, 80),
        (2, 4096, 4096, 10, 64),
        (2, 4096, 77, 10, 64),
    ):
        tokens = [torch.randn(rows, n, heads * D).to(dtype) for n in (queries, keys, keys)]
        yield f"{rows} x {queries} x {keys}, {heads} heads of {D}", (*tokens, heads)


def geglu_cases(dtype):
    for tokens, N in ((2048, 640), (10240, 640), (8192, 1280), (2048, 2560), (512, 5120)):
        yield f"{tokens} x {N}", (torch.randn(tokens, 2 * N).to(dtype),)


CASES = {
    "attention": attention_cases,
    "geglu": geglu_cases,
    "lora_delta_": lora_delta_cases,
    "lora_fold": lora_fold_cases,
    "radial_amplitude": radial_amplitude_cases,
    "cache_refresh_": cache_refresh_cases,
    "combine_": combine_cases,
}


def result_of(op, inputs, dtype=None):
    """What the op returns, or writes into a copy of its first argument."""
    copies = [
        t.to(dtype, copy=True) if torch.is_tensor(t) and t.is_floating_point() and dtype else t
        for t in inputs
    ]
    copies[0] = copies[0].clone()
    result = op(*copies)
    result = copies[0] if result is None else result
    return result[1] if isinstance(result, tuple) else result


def measure(op, inputs, seconds):
    ours, twin = getattr(ops, op), getattr(reference, op)
    exact = result_of(twin, inputs, torch.float64)
    size = exact.abs().max()
    errors = [((result_of(f, inputs).double() - exact).abs().max() / size) for f in (ours, twin)]
    times = paired_ms(
        {"ours": lambda: ours(*inputs), "twin": lambda: twin(*inputs)}, seconds=seconds
    )
    return {
        **{name: asdict(timing) for name, timing in times.items()},
        "speedup": times["twin"].median / times["ours"].median,
        "error": errors[0].item(),
        "twin_error": errors[1].item(),
    }


def _processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine():
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": backends.backends()["cpu"]["detail"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=list(CASES), action="append", help="default: all")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--isa", choices=backends.ISAS, help="default: the fastest")
    parser.add_argument("--seconds", type=float, default=0.3, help="per case and callable")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    rows = []
    if not args.json:
        print_head(args)
    with ops.force(isa=args.isa), torch.no_grad():
        for op in args.op or CASES:
            for case, inputs in CASES[op](getattr(torch, args.dtype)):
                row = {"op": op, "case": case, **measure(op, inputs, args.seconds)}
                rows.append(row)
                if not args.json:
                    print_row(row)
    if args.json:
        print(
            json.dumps({"arguments": vars(args), "machine": machine(), "results": rows}, indent=1)
        )


def print_head(args):
    isa = args.isa or machine()["cpu"]["isa"]
    print(f"{args.dtype}, {isa}, {torch.get_num_threads()} threads; ms: median [quartiles]")
    columns = f"{'op':17} {'case':34} {'ours':>24} {'torch twin':>24}"
    print(f"{columns} {'x':>6} {'error':>8} {'twin':>8}")


def print_row(row):
    ours, twin = (
        "{median:8.3f} [{low:6.3f} {high:6.3f}]".format(**row[name]) for name in ("ours", "twin")
    )
    print(
        f"{row['op']:17} {row['case']:34} {ours:>24} {twin:>24} {row['speedup']:6.2f} "
        f"{row['error']:8.1e} {row['twin_error']:8.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
