"""What the kernels and pipelines reach on this GPU, against torch, PEFT and its own copy rate.

python -m cmlora_fast.benchmarks.gpu --out results --dry-run

``--small`` runs everything once at sizes that a CPU manages: it shows that the benchmark works,
and its times mean nothing.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cmlora_fast as cf
import diffusers
import peft
import torch
from cmlora_fast import ops

from . import kernels as gpu_kernels
from . import pipelines as gpu_pipelines
from .timing import copies_for, device_us, host_us

LIMIT = 420.0  # seconds; with the build and the tests less than nine minutes
KERNELS_SHARE = 0.35


class Clock:
    """Time left: what no longer fits is left out by name, not cut short."""

    def __init__(self, seconds: float):
        self.stop = time.perf_counter() + seconds

    def is_up(self, needed: float = 0.0) -> bool:
        return time.perf_counter() + needed >= self.stop


def limits(device: torch.device, small: bool) -> dict[str, float]:
    """Bytes per second of a copy (read and written), and operations per second of a product."""
    side = 256 if small else 8192
    source = torch.ones(side * side * 8 // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    copy = device_us([lambda: target.copy_(source)] * 4, device)
    product = device_us([lambda: torch.mm(a, b, out=out)] * 4, device)
    return {
        "copy_bytes_per_s": 2e6 * source.numel() * source.element_size() / copy,
        "product_flops_per_s": 2e6 * side**3 / product,
    }


def measure_case(case: gpu_kernels.Case, device: torch.device, reached: dict[str, float]) -> dict:
    """Every variant of a case; one that this machine lacks gives its reason."""
    rows = {}
    for variant in case.variants:
        try:
            calls = [case.make(variant) for _ in range(copies_for(case.bytes, device))]
            with ops.force(backend=gpu_kernels.backend_of(variant)):
                device_time, host = device_us(calls, device), host_us(calls[:8], device)
        except Exception as error:
            rows[variant] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        rate = 1e6 * case.bytes / device_time
        rows[variant] = {"device_us": device_time, "host_us": host, "bytes_per_s": rate}
        rows[variant]["share_of_copy"] = rate / reached["copy_bytes_per_s"]
        if variant == "base":
            share = 1e6 * case.flops / device_time / reached["product_flops_per_s"]
            rows[variant]["share_of_product"] = share
    return {"op": case.op, "case": case.name, "variants": rows}


def run_kernels(device, clock: Clock, small: bool, log: Callable[[str], None]) -> dict:
    reached = limits(device, small)
    log(f"limits: {reached}")
    results, left_out = [], []
    for case in gpu_kernels.cases(device, small):
        if clock.is_up():
            left_out.append(f"{case.op}, {case.name}")
            continue
        results.append(measure_case(case, device, reached))
        log(json.dumps(results[-1]))
    return {"limits": reached, "cases": results, "left_out": left_out}


def run_pipelines(device, clock: Clock, small: bool, log: Callable[[str], None]) -> dict:
    models = gpu_pipelines.SMALL if small else gpu_pipelines.MODELS
    steps = 3 if small else gpu_pipelines.STEPS
    found = {"steps": steps, "results": [], "throughput": [], "left_out": []}

    def try_one(kind: str, row: dict, pipe, variant: gpu_pipelines.Variant) -> None:
        if clock.is_up(variant.seconds):
            found["left_out"].append(row)
            return
        try:
            row |= gpu_pipelines.measure(pipe, variant, steps, 1 if small else 2)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        found[kind].append(row)
        log(json.dumps(row))

    for model in models:
        pipe, size = gpu_pipelines.load(model, device)
        for count in (2,) if small else gpu_pipelines.COUNTS:
            for variant in gpu_pipelines.variants(pipe, size, count, steps):
                row = {"model": model, "adapters": count, "variant": variant.name}
                try_one("results", row, pipe, variant)
        for given, variant in () if small else gpu_pipelines.throughput(pipe, size, steps):
            try_one("throughput", {"model": model, **given}, pipe, variant)
        del pipe
    model = next(iter(models))
    pipe, size = gpu_pipelines.load(model, device)
    for given, variant in gpu_pipelines.of_one_model(pipe, size, steps, compiles=not small):
        try_one("results", {"model": model, **given, "variant": variant.name}, pipe, variant)
    return found


def plan(small: bool) -> list[str]:
    """What a run measures, in order."""
    cpu = torch.device("meta")
    lines = [
        f"kernel  {case.op:18} {case.name:28} {', '.join(case.variants)}"
        for case in gpu_kernels.cases(cpu, small)
    ]
    models = gpu_pipelines.SMALL if small else gpu_pipelines.MODELS
    everyone = ", ".join((*gpu_pipelines.THEIRS, *gpu_pipelines.OURS))
    counts = (2,) if small else gpu_pipelines.COUNTS
    for model in models:
        lines += [f"pipeline  {model}, {count} adapters: {everyone}" for count in counts]
        images = ", ".join(map(str, gpu_pipelines.IMAGES))
        lines += [f"throughput  {model}, CMLoRA, 3 adapters: {images} images per call"]
    model, concepts = next(iter(models)), gpu_pipelines.CONCEPTS
    more = ", ".join(
        gpu_pipelines.CLORA if small else (*gpu_pipelines.CLORA, gpu_pipelines.COMPILED)
    )
    return [*lines, f"pipeline  {model}, {concepts} concepts or adapters: {more}"]


def machine() -> dict:
    packages = {"torch": torch, "diffusers": diffusers, "peft": peft, "cmlora_fast": cf}
    found = {name: module.__version__ for name, module in packages.items()}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cuda": torch.version.cuda, "python": platform.python_version(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of gpu.json; default: print it")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="stop starting things after")
    args = parser.parse_args()
    if args.dry_run:
        print("\n".join([f"at most {args.seconds:.0f} s", *plan(args.small)]))
        return
    if not args.small and not torch.cuda.is_available():
        parser.error("this torch sees no GPU; --dry-run prints the plan, --small tries it here")

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    whole, kernels = Clock(args.seconds), Clock(KERNELS_SHARE * args.seconds)
    results = {"machine": machine(), "backends": cf.backends(), "small": args.small}
    with torch.inference_mode():
        results["kernels"] = run_kernels(device, kernels, args.small, log)
    results["pipelines"] = run_pipelines(device, whole, args.small, log)
    text = json.dumps(results, indent=1)
    if args.out is None:
        print(text)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "gpu.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
